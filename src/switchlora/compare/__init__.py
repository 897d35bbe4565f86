"""`switchlora compare`: methods side by side, at equal tokens on identical batches, each with its own learning rates.

options.py   what is compared            plan.py       which runs that means
sweep.py     two learning rates, and whether the winner's neighbours lose
checks.py    what would stop every run   budget.py     how many hours all takes
processes.py runs side by side           results.py    one JSON file per run
reading.py   those that are there        tables.py     what the report shows, as plain data
command.py   all of it                   finetuned.py  results of `switchlora finetune` side by side
"""
