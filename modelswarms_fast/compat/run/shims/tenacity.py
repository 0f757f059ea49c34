"""tenacity, or calls that are made once."""

from modelswarms_fast.compat.run.places import Once, package

package(__name__, Once)
