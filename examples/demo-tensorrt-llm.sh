# TensorRT-LLM needs GPUs: nothing is run. What every pod would do on a group of 2 nodes with 8 GPUs each.
echo "demo: TensorRT-LLM runs on GPUs only, so this shows the plan instead: lwsrun plan --size 2 --gpus-per-node 8 …"
echo "demo: \`make demo ENGINE=mpi\` runs a real MPI program over real pods by the same way."
echo
exec lwsrun plan --size 2 --gpus-per-node 8 -- trtllm-serve deepseek-ai/DeepSeek-R1 --tp_size 16
