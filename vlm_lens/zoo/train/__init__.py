"""How the shipped models were trained: `python -m vlm_lens.zoo.train toy-llava`.

Plain transformers and plain torch hooks, independent of the rest of the library, so that the
library is never graded by itself. Each module holds one idea:

| module | idea |
|---|---|
| `world` | the tables as entities with facts and pictures |
| `tokenization` | a tokenizer over the words of the tables, and the processor |
| `corpus` | prompts sampled from the tables, as tensors; none mixes modalities |
| `pictures` | pixels, with augmentation |
| `organism` | what one kind of model adds: architecture, processor, prompt form |
| `llava`, `idefics2`, `fuyu` | the three kinds |
| `configs` | sizes, and where the parts of a model are |
| `interchange` | the losses that plant the three phases |
| `matching` | contrastive pretraining of a tower |
| `stages` | the curriculum |
| `loop` | stages, checkpoints, resume, log, export |
"""
