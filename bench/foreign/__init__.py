"""Peers that cannot be installed beside our packages, and what each needs: `<name>.txt` is its environment.

These modules run there. They import the standard library, what their environment holds, and of `bench` only
what needs no more than NumPy; nothing of aimass.
"""
