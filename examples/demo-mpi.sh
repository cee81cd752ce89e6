# A group of 3 pods of 2 slots: mpirun on the leader, sshd in every worker with keys of this run, one allreduce over 6
# ranks. AGENT=channel: lwsrun itself starts mpirun's daemons, without sshd and without root.
export PATH="$MPI/bin:$PATH:/usr/sbin" OMPI_MCA_mpi_yield_when_idle=1
if [ -z "$AGENT" ] && [ "$(id -u)" != 0 ]; then
  echo "demo: without root sshd cannot run in a simulated pod (setgroups): this shows --mpi-agent channel instead"
  AGENT=channel
elif [ "${AGENT:-ssh}" = ssh ] && { ! command -v sshd || ! command -v ssh; } >/dev/null; then
  echo "demo: no OpenSSH here: apt-get install openssh-server openssh-client; or AGENT=channel, which needs none" >&2
  exit 78
fi
exec lwsrun simulate --size 3 --gpus-per-node 2 --backend mpi --mpi-agent "${AGENT:-ssh}" \
  -- "$MPI/bin/python" "$(dirname "$0")/mpi_sum.py"
