"""`python -m xcite` is the command `xcite`."""

from xcite.cli import main

if __name__ == "__main__":
    main()
