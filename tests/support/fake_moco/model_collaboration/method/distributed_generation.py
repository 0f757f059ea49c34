"""Generation; it must have been replaced."""

from model_collaboration.data import eval

MAX_RESPONSE_LENGTH = None
TEMPERATURE = None
TOP_P = None
BATCH_SIZE = None
BIG_MODEL_MODE = None


def update_generation_hyperparameters(max_response_length, temperature, top_p, batch_size, big_model_mode=False):
    globals().update(
        MAX_RESPONSE_LENGTH=max_response_length,
        TEMPERATURE=temperature,
        TOP_P=top_p,
        BATCH_SIZE=batch_size,
        BIG_MODEL_MODE=big_model_mode,
    )


def batch_generate_text(model_name, gpu_id, input_list, max_response_length, temperature, top_p, batch_size):
    raise AssertionError("not replaced")


def batch_generate_text_with_score(model_name, gpu_id, input_list, max_response_length, temperature, top_p, batch_size):
    eval.loaded.append(("scored", eval.engines()))


def distributed_generation(list_of_model_name, list_of_input_list, list_of_gpu_id, max_response_length=None):
    raise AssertionError("not replaced")
