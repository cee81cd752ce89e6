"""vLLM's options as its own parser reads them, and since which version each mode has what it needs.

Read from vLLM 0.32 and 0.33 (vllm/engine/arg_utils.py, vllm/entrypoints/cli/serve.py) and, for the versions, from the
releases 0.8.5 to 0.30. The shortest prefixes are those that argparse accepts for its whole option list; of options with
one dash too, where an alias names them.
"""

from __future__ import annotations

from backends.argv import Flag

TP = Flag("--tensor-parallel-size", ("-tp", "-t"), shortest="--te")
PP = Flag("--pipeline-parallel-size", ("-pp",), shortest="--pi")
PCP = Flag("--prefill-context-parallel-size", ("-pcp", "-pc"), shortest="--prefill-c")
DP = Flag("--data-parallel-size", ("-dp",))
EXECUTOR = Flag("--distributed-executor-backend", shortest="--distributed-e")

NNODES = Flag("--nnodes", ("-n",), shortest="--nn")
NODE_RANK = Flag("--node-rank", ("-r",), shortest="--nod")
MASTER_ADDR = Flag("--master-addr", shortest="--master-a")
MASTER_PORT = Flag("--master-port", shortest="--master-p")
HEADLESS = Flag("--headless", shortest="--hea", takes_value=False)

DP_BACKEND = Flag("--data-parallel-backend", ("-dpb",), shortest="--data-parallel-b")
DP_LOCAL = Flag("--data-parallel-size-local", ("-dpl",), shortest="--data-parallel-size-")
DP_RANK = Flag("--data-parallel-rank", ("-dpn",), shortest="--data-parallel-ra")
DP_START = Flag("--data-parallel-start-rank", ("-dpr",), shortest="--data-parallel-st")
DP_ADDRESS = Flag("--data-parallel-address", ("-dpa",), shortest="--data-parallel-a")
DP_PORT = Flag("--data-parallel-rpc-port", ("-dpp",), shortest="--data-parallel-rp")
HYBRID = Flag("--data-parallel-hybrid-lb", ("-dph",), shortest="--data-parallel-h", takes_value=False)
EXTERNAL = Flag("--data-parallel-external-lb", ("-dpe",), shortest="--data-parallel-e", takes_value=False)
MULTI_PORT = Flag("--data-parallel-multi-port-external-lb", ("-dpm",), shortest="--data-parallel-m", takes_value=False)
SUPERVISOR_PORT = Flag("--data-parallel-supervisor-port", shortest="--data-parallel-su")

HOST = Flag("--host", shortest="--ho")
PORT = Flag("--port", shortest="--por")
UNIX_SOCKET = Flag("--uds", shortest="--ud")
MODEL = Flag("--model")
CONFIG = Flag("--config")
KV_TRANSFER = Flag("--kv-transfer-config", shortest="--kv-t")
NO_STATS = Flag("--disable-log-stats", shortest="--disable-l", takes_value=False)
CERTIFICATE = Flag("--ssl-certfile", shortest="--ssl-certf")
COUNT = Flag("--enable-server-load-tracking", shortest="--enable-se", takes_value=False)
API_SERVERS = Flag("--api-server-count", ("-asc", "-as"), shortest="--api-s")
GRPC = Flag("--grpc", takes_value=False)
GRPC_PORT = Flag("--grpc-port", shortest="--grpc-")
SHUTDOWN = Flag("--shutdown-timeout", shortest="--shu")
ELASTIC_EP = Flag("--enable-elastic-ep", shortest="--enable-el", takes_value=False)
FAULT_TOLERANCE = Flag("--enable-fault-tolerance", shortest="--enable-fa", takes_value=False)
EPLB = Flag("--enable-eplb", shortest="--enable-epl", takes_value=False)
ALL2ALL = Flag("--all2all-backend", shortest="--all2")

# Flags in which the pods of one group differ: where it serves; and what must be this pod's, if a template has it.
PER_ROLE = (
    *(HOST, PORT, UNIX_SOCKET),
    *(NNODES, NODE_RANK, MASTER_ADDR, HEADLESS, API_SERVERS, DP_LOCAL, DP_RANK, DP_START, DP_ADDRESS),
)

# vLLM's own defaults.
DEFAULT_MASTER_PORT = 29501
DEFAULT_DP_PORT = 29550
DEFAULT_SUPERVISOR_PORT = 9256

NEWEST = "0.33.0"  # that these rules were read from
COUNTS_SINCE = (0, 9)  # https://github.com/vllm-project/vllm/pull/13950
DRAINS_SINCE = (0, 18)  # https://github.com/vllm-project/vllm/pull/36666
NATIVE_SINCE = (0, 11, 1)  # https://github.com/vllm-project/vllm/pull/23691
DP_SINCE = (0, 9)
DP_RAY_SINCE = (0, 9, 1)
DP_RANK_SINCE = (0, 9, 2)
HYBRID_SINCE = (0, 10)
DP_SPAN_SINCE = (0, 11, 1)  # of Ray's "span"; 0.11.0 has not got it
MULTI_PORT_SINCE = (0, 22)
