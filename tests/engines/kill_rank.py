"""Kill a process of the SGLang in a simulated pod: python kill_rank.py PID-OF-THE-POD'S-LAUNCHER main|scheduler"""

import sys

import psutil

pid, which = int(sys.argv[1]), sys.argv[2]
# A launcher that reads versions or asks a health page may have other children for a moment.
below = psutil.Process(pid).children(recursive=True)
titles = {process: " ".join(process.cmdline()) for process in below}
wanted = "sglang.launch_server" if which == "main" else "sglang::scheduler"
victims = [process for process, title in titles.items() if wanted in title and process.is_running()]
if which == "main":
    victims = [process for process in victims if process.ppid() == pid]
assert len(victims) == 1, f"no {wanted} among {list(titles.values())}"
victims[0].kill()
print(f"killed the {which}", flush=True)
