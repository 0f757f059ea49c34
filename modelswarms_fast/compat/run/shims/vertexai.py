"""vertexai, or a stand-in."""

from modelswarms_fast.compat.run.places import package

package(__name__, inside=("generative_models",))
