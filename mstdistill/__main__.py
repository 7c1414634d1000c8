"""`python -m mstdistill` and `accelerate launch -m mstdistill`."""

from .cli import main

if __name__ == "__main__":
    main()
