# A group of 3 pods, each with its own IP and a launcher as PID 1; a real Ray cluster over them; one real request.
exec lwsrun simulate --size 3 --gpus-per-node 1 --backend ray --kind server --then '
  curl -s --retry 60 --retry-connrefused --retry-delay 1 "http://$LEADER_IP:8000/v1/completions" \
    -H "Content-Type: application/json" -d "{\"prompt\": \"Who is here?\", \"max_tokens\": 6}"
' -- python3 "$(dirname "$0")/ray_completions.py" --port 8000
