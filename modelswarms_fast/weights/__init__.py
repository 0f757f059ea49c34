"""Folders to rows and back: experts are read into flat rows, rows move in memory, a row is loaded into an engine.

`experts` reads a pool of adapters or checkpoints: `expert_folders` finds them, `checkpoint` and `adapters` look into
one, `adapter_forms` knows what trainers leave, `union` makes one `layout` of adapters that differ. `export` writes a
row as a folder with a `model_card`. `base_model` finds the base model, `hub` downloads what is not here, and `packaged`
has the models that packages carry, which `gguf` and `gguf_tokenizer` convert. `mixing` makes the row of a mixture.
`population` holds the rows of all particles; `rows` and `row_table` move and promote them; `row_name` names what a row
holds. `placement` says where rows lie and `free_memory` how much room there is; `arena`, `shared_memory`, `streaming`
and `row_cache` are the memory they lie in. `weight_loader` writes a row into the tensors of an engine.
"""
