"""`python -m alpage`: the command line."""

from alpage.cli import main

if __name__ == "__main__":
    main()
