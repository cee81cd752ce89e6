#!/bin/sh
# What people put in front of vLLM in a LeaderWorkerSet today, written anew from the description of the public script:
#
#   sh multi_node.sh leader SIZE       start a Ray head and look every 5 s, for 60 turns, whether SIZE nodes are alive
#   sh multi_node.sh worker ADDRESS    join that head and stay; when that ends badly, 5 s later again, for 60 turns
#
# $RAY_FLAGS are this machine's: faked GPUs, a small object store.
ALIVE='import ray; ray.init(); print(sum(node["Alive"] for node in ray.nodes()))'
turn=0

case $1 in
leader)
  ray start --head --port=6379 $RAY_FLAGS
  while [ $turn -lt 60 ]; do
    alive=$(python3 -c "$ALIVE" 2>/dev/null | tail -n 1)
    echo "$alive of $2 nodes are alive"
    [ "$alive" = "$2" ] && exit 0
    turn=$((turn + 1))
    sleep 5
  done
  ;;
worker)
  while [ $turn -lt 60 ]; do
    ray start --address="$2:6379" --block $RAY_FLAGS && exit 0
    turn=$((turn + 1))
    sleep 5
  done
  ;;
esac
exit 1
