# A group of 2 pods; a real vLLM on the CPU with TP 2 over both, on Ray; one real completion of a random-weights model.
export HF_HUB_OFFLINE=1 VLLM_NO_USAGE_STATS=1 VLLM_CPU_KVCACHE_SPACE=1 VLLM_CPU_OMP_THREADS_BIND=nobind
exec lwsrun simulate --size 2 --gpus-per-node 1 --then '
  curl -s --retry 300 --retry-connrefused --retry-delay 1 "http://$LEADER_IP:8000/v1/completions" \
    -H "Content-Type: application/json" -d "{\"model\": \"tiny\", \"prompt\": \"Hello\", \"max_tokens\": 8}"
' -- "$VLLM/bin/vllm" serve "$VLLM/tiny-llama" --served-model-name tiny --max-model-len 256 --enforce-eager \
  --tensor-parallel-size 2
