"""The machine that a command runs on, asked in one place, so that what trains need not.

devices.py      CPU or GPU, threads, launched ranks     description.py   versions and hardware, as results keep them
files.py        files that are whole or absent          signals.py       SIGTERM and Ctrl-C
cpu_products.py who multiplies matrices on the CPU      console.py       lines for the person at the terminal
"""
