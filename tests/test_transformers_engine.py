"""What the transformers engine refuses, rather than serve another model than the one that was asked for."""

import pytest
from helpers_models import edit_tensors
from test_ensemble import llama

from modelswarms_fast.engines.transformers import TransformersEngine
from modelswarms_fast.errors import InputError


def test_a_checkpoint_that_lacks_a_tensor_is_refused(tmp_path):
    """transformers would make the tensor up at random; a tied head, which lies in the embeddings, lacks nothing."""
    TransformersEngine(llama(tmp_path / "tied", 1), None)
    folder = llama(tmp_path / "cut", 1)
    edit_tensors(folder, model__norm__weight=...)
    with pytest.raises(InputError, match=rf"^{folder} has no tensor model\.norm\.weight"):
        TransformersEngine(folder, None)
