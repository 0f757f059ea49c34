"""A stand-in of a user's evaluate.py, of the same interface as model_swarm's, with an evaluation type of its own."""

import json

import torch
import vertexai
from googleapiclient import discovery
from tenacity import retry, stop_after_attempt
from vertexai.generative_models import HarmCategory, SafetySetting


class AutoModelForCausalLM:
    """That of transformers, imported when it is used: it takes seconds, in each process."""

    @staticmethod
    def from_pretrained(*args, **kwargs):
        import transformers

        return transformers.AutoModelForCausalLM.from_pretrained(*args, **kwargs)


class AutoTokenizer:
    @staticmethod
    def from_pretrained(*args, **kwargs):
        import transformers

        return transformers.PreTrainedTokenizerFast.from_pretrained(*args, **kwargs)


model = None
tokenizer = None
WORDS = None

try:
    client = discovery.build("commentanalyzer", "v1alpha1")
except ImportError:
    client = None
try:
    vertexai.init(project=None)
except ImportError:
    safety = [SafetySetting(category=HarmCategory.HARM_CATEGORY_UNSPECIFIED)]


@retry(stop=stop_after_attempt(5))
def vowels(text):
    return sum(letter in "aeiou" for letter in text)


def update_words(value):
    global WORDS
    WORDS = value


def batch_generate(model, tokenizer, prompts, gpu_id, batch_size=3, max_new_tokens=6):
    outputs = []
    for first in range(0, len(prompts), batch_size):
        batch = prompts[first : first + batch_size]
        input_ids = tokenizer(batch, return_tensors="pt", padding=True).input_ids.to(f"cuda:{gpu_id}")
        output = model.generate(input_ids, max_new_tokens=max_new_tokens, do_sample=False)
        for row, prompt in zip(output, input_ids, strict=True):
            outputs.append(tokenizer.decode(row[len(prompt) :], skip_special_tokens=True).strip())
        del input_ids, output
        torch.cuda.empty_cache()
    return outputs


def batch_generate_chat_template(model, tokenizer, prompts, gpu_id, batch_size=10, max_new_tokens=6):
    outputs = []
    for prompt in prompts:
        chat = [{"role": "user", "content": prompt}]
        text = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
        ids = tokenizer.encode(text, add_special_tokens=False, return_tensors="pt")
        output = model.generate(input_ids=ids.to(model.device), max_new_tokens=max_new_tokens, do_sample=False)
        outputs.append(tokenizer.decode(output[0][len(ids[0]) :], skip_special_tokens=True).strip())
    return outputs


def evaluate(model_path, eval_type, dataset, gpu_id, base_model="base", save_dev_flag=False):
    global model
    global tokenizer
    try:
        model = AutoModelForCausalLM.from_pretrained(base_model, torch_dtype=torch.float32)
        model.load_adapter(model_path)
        model.to(f"cuda:{gpu_id}")
        tokenizer = AutoTokenizer.from_pretrained(base_model)
    except Exception:
        model = AutoModelForCausalLM.from_pretrained(model_path, torch_dtype=torch.float32)
        model.to(f"cuda:{gpu_id}")
        tokenizer = AutoTokenizer.from_pretrained(model_path)
    tokenizer.pad_token = tokenizer.eos_token
    with open(f"data/eval/{dataset}.json") as file:
        prompts = [example["question"] for example in json.load(file)["dev"]]
    if eval_type == "vowels":  # the user's own
        outputs = batch_generate(model, tokenizer, prompts, gpu_id)
        outputs = [
            one + two
            for one, two in zip(outputs, batch_generate(model, tokenizer, prompts[:2], gpu_id) * 6, strict=True)
        ]
    elif eval_type == "chat":
        outputs = batch_generate_chat_template(model, tokenizer, prompts, gpu_id)
    else:
        raise ValueError(eval_type)
    if save_dev_flag:
        with open(model_path + "/outputs_dev.json", "w") as file:
            json.dump(outputs, file)
    return sum(map(vowels, outputs)) / len(outputs)
