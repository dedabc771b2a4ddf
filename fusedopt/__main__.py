"""`python -m fusedopt` is the `fusedopt` command; `torchrun -m fusedopt` runs it in several processes."""

import sys

if __name__ == "__main__":
    if sys.argv[1:2] == ["run"]:  # which needs no more than torch
        from fusedopt.running import main as run

        run(sys.argv[2:])
    else:
        from fusedopt.cli import main

        main()
