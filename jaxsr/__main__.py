"""`python -m jaxsr`."""

from jaxsr.cli import main

if __name__ == "__main__":
    main()
