"""wandb, or nothing in its place."""

from modelswarms_fast.compat.run.places import Silent, package

package(__name__, Silent)
