# A group of 3 pods of 2 slots: mpirun on the leader, its daemons started by lwsrun itself, one allreduce over 6 ranks.
# AGENT=ssh: over sshd in every worker pod, with keys of this run.
export PATH="$MPI/bin:$PATH" OMPI_MCA_mpi_yield_when_idle=1
exec lwsrun simulate --size 3 --gpus-per-node 2 --backend mpi --mpi-agent "${AGENT:-channel}" \
  -- "$MPI/bin/python" "$(dirname "$0")/mpi_sum.py"
