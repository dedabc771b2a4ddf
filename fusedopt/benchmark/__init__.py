"""What a step costs, here and on your own model: `fusedopt.compare` and `fusedopt bench`."""
