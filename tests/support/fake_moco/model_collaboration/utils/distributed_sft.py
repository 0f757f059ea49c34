"""Training."""

from model_collaboration.data import eval


def distributed_sft(list_of_model_names, list_of_sft_data_paths, list_of_gpu_ids, list_of_output_model_paths,
                    batch_size=1, gradient_accumulation_steps=16, learning_rate=1e-5, epoch=3):  # fmt: skip
    eval.loaded.append(("sft", eval.engines()))
