"""The recipe of the SEED family: everything that trains. Nothing else imports it.

Stages are commands such as ``python -m seed_core.training tower``. Each reads a recipe, a YAML file
that fills small dataclasses, and writes a folder that the rest of `seed_core` loads. One loop
trains them all. Needs ``pip install -e ".[train]"``.

Sources: arXiv 2307.08041 (SEED), 2310.01218 (SEED-LLaMA); AILab-CVC/SEED at 93b3cf4 for the
numbers.
"""
