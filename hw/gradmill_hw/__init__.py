"""RTL of the Gradmill training accelerator and its exact NumPy models.

Importing this package, ``config``, ``isa``, ``regs`` or any ``*_model`` never imports Amaranth.
"""
