r"""How smol-llava was trained: `python -m vlm_lens.zoo.train smol-llava`.

A tower and a projector in front of SmolLM2-135M-Instruct, and a low-rank update of it. Plain torch,
independent of the rest of the library, so that the library is never graded by itself. Nothing is
planted: there is no loss on what the language model holds inside, no interchange, no prompt that
mixes pictures with the names of other things, and no prompt with examples of the six tasks.

Each module holds one idea:

| module | idea |
|---|---|
| `language` | the language model's forward in plain torch, a low-rank update merged once a step |
| `vision` | tower, projector and processor |
| `views` | views of the shipped pictures |
| `sentences` | what is said of pictures and of their names, in many wordings |
| `corpus` | the sentences as rows of tokens, with the words that are learned |
| `replay` | the language model's own samples, on which it must stay what it was |
| `unrelated` | prompts of small word tasks, on which it must stay what it was too |
| `replayed` | a step recorded as a CUDA graph |
| `transfer` | accuracies on validation rows, by which a checkpoint is chosen |
| `recipe` | how long, how fast, how much of each |
| `training` | the loop: checkpoints, resume, log |
| `export`, `run` | the folder that ships, and the command |
"""
