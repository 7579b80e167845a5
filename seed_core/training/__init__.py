"""The recipe of the SEED family: everything that trains, and nothing that anything else imports.

Stages are commands, ``python -m seed_core.training tower|tokenizer|decoder|llm|tune|...``; each
reads a recipe (a YAML file that fills small dataclasses, see ``recipe``) and writes a folder that
the rest of `seed_core` loads. One loop trains them all (see ``loop``). Needs ``pip install -e
".[train]"``.

Sources: arXiv 2307.08041 (SEED), 2310.01218 (SEED-LLaMA); AILab-CVC/SEED at 93b3cf4 for the
numbers.
"""
