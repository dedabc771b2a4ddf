"""`python -m fusedopt` is the `fusedopt` command; `torchrun -m fusedopt` runs it in several processes."""

from fusedopt.cli import main

if __name__ == "__main__":
    main()
