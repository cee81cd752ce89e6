"""Break the SGLang in a simulated pod: python break_sglang.py PID-OF-THE-POD'S-LAUNCHER main|scheduler|freeze

main, scheduler: SIGKILL to that process. freeze: SIGSTOP to everything in the pod.
"""

import sys

import psutil

launcher, what = psutil.Process(int(sys.argv[1])), sys.argv[2]
below = launcher.children(recursive=True)
if what == "freeze":
    for process in (launcher, *below):
        process.suspend()
else:
    wanted, titles = {"main": "sglang.launch_server", "scheduler": "sglang::scheduler"}[what], {}
    for process in below:
        titles[process] = " ".join(process.cmdline())
    victims = [process for process, title in titles.items() if wanted in title]
    if what == "main":  # forks of it may still carry its title
        victims = [process for process in victims if process.ppid() == launcher.pid]
    assert len(victims) == 1, f"no single {wanted} among {list(titles.values())}"
    victims[0].kill()
print(f"broken: {what}", flush=True)
