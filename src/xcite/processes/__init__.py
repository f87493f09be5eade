"""Several processes of one run: which one this is, how they are started, watched and ended.

No framework is imported here; `engines/*/launcher.py` calls the frameworks' own launchers.
"""
