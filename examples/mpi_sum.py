"""What each rank of `make demo ENGINE=mpi` is: it adds itself up with all others, and says where it is."""

import os
import socket

from mpi4py import MPI

world = MPI.COMM_WORLD
total = world.allreduce(world.rank + 1)
slot = os.environ["OMPI_COMM_WORLD_LOCAL_RANK"]
# One write: mpirun brings the lines of all ranks to the leader's output.
os.write(1, f"rank {world.rank} of {world.size}: host {socket.gethostname()}, slot {slot}, sum {total}\n".encode())
