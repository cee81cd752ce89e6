"""Namespaces: the sandbox that holds a whole simulation, and the ones of each pod.

Everything lives inside one sandbox (PID, network and mount namespace, and a user namespace when we are not root), so
that the kernel takes it all away when the sandbox's first process ends, even after kill -9.
"""

from __future__ import annotations

import contextlib
import os
import socket
from pathlib import Path

from launcher import kernel
from launcher.simulate.spec import DOMAIN, GATEWAY, LWS, NAMESPACE, PREFIX, Spec

CLONE_NEWNS = 0x00020000
CLONE_NEWUTS = 0x04000000
CLONE_NEWIPC = 0x08000000
CLONE_NEWUSER = 0x10000000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000
MS_BIND = 4096
MS_REC = 16384
MS_PRIVATE = 1 << 18
MS_NOSUID, MS_NODEV, MS_NOEXEC = 2, 4, 8


def enter_sandbox() -> None:
    """Give this process a network and mount namespace, and its next child a PID namespace. Raises OSError."""
    user, group = os.getuid(), os.getgid()
    rootless = os.geteuid() != 0
    kernel.unshare((CLONE_NEWUSER if rootless else 0) | CLONE_NEWNET | CLONE_NEWNS | CLONE_NEWPID)
    if rootless:
        # setgroups must be denied before an unprivileged process may map its group: user_namespaces(7).
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"0 {user} 1")
        Path("/proc/self/gid_map").write_text(f"0 {group} 1")
    kernel.mount("none", "/", flags=MS_REC | MS_PRIVATE)


def set_up_network() -> None:
    """In the sandbox: a bridge that is the pods' network and gateway."""
    from pyroute2 import IPRoute

    with IPRoute() as ip:
        ip.link("set", index=ip.link_lookup(ifname="lo")[0], state="up")
        # An address of its own: else it is the lowest of its ports', and changes when a pod comes or goes.
        ip.link("add", ifname="lws0", kind="bridge", address=_mac(GATEWAY))
        bridge = ip.link_lookup(ifname="lws0")[0]
        ip.addr("add", index=bridge, address=GATEWAY, prefixlen=PREFIX)
        ip.link("set", index=bridge, state="up")


def _mac(address: str) -> str:
    """By the IP, so that nobody's ARP cache is wrong when a container starts anew with the address of its pod."""
    return "02:00:" + ":".join(f"{int(byte):02x}" for byte in address.split("."))


def connect(link: str, connected: bool) -> None:
    """In the sandbox: put a pod's link on the bridge or off it.

    Off it, the pod keeps its address, its routes and its carrier; what it sends and what is sent to it is lost, and no
    TCP peer sees a FIN or RST.
    """
    from pyroute2 import IPRoute, NetlinkError

    with IPRoute() as ip:
        bridge = ip.link_lookup(ifname="lws0")[0]
        for port in ip.link_lookup(ifname=link):
            with contextlib.suppress(NetlinkError):  # the pod has just ended
                ip.link("set", index=port, master=bridge if connected else 0)


def remove_link(link: str) -> None:
    """In the sandbox: the kernel takes an ended pod's link away in its own time; its address may be needed before."""
    from pyroute2 import IPRoute, NetlinkError

    with IPRoute() as ip:
        for port in ip.link_lookup(ifname=link):
            with contextlib.suppress(NetlinkError):
                ip.link("del", index=port)


def enter_pod(spec: Spec, index: int, generation: int, connected: bool = True) -> None:
    """Leave the sandbox's namespaces for the pod's own, connected to the bridge by eth0 or, as connect has it, not.

    The next child becomes the pod's PID 1.
    """
    from pyroute2 import IPRoute

    address, outer = spec.ip(index, generation), spec.link(index, generation)
    inside = outer.replace("pod", "eth0-")
    # A netlink socket belongs to the namespace that it was made in: this one goes on speaking to the sandbox's.
    with IPRoute() as outside:
        outside.link("add", ifname=outer, kind="veth", peer={"ifname": inside, "address": _mac(address)})
        port, inner = outside.link_lookup(ifname=outer)[0], outside.link_lookup(ifname=inside)[0]
        bridge = outside.link_lookup(ifname="lws0")[0]
        outside.link("set", index=port, master=bridge if connected else 0, state="up")
        kernel.unshare(CLONE_NEWNET | CLONE_NEWNS | CLONE_NEWPID | CLONE_NEWUTS | CLONE_NEWIPC)
        outside.link("set", index=inner, net_ns_pid=os.getpid())
    with IPRoute() as ip:
        ip.link("set", index=ip.link_lookup(ifname="lo")[0], state="up")
        eth0 = ip.link_lookup(ifname=inside)[0]
        ip.link("set", index=eth0, ifname="eth0")
        ip.addr("add", index=eth0, address=address, prefixlen=PREFIX)
        ip.link("set", index=eth0, state="up")
        ip.route("add", dst="default", gateway=GATEWAY)


def furnish_pod(spec: Spec, index: int, generation: int) -> None:
    """As the pod's PID 1: host name, /proc, DNS configuration, a /tmp and /dev/shm of its own."""
    host, address = spec.host(index), spec.ip(index, generation)
    socket.sethostname(host)
    here = os.getcwd()
    kernel.mount("none", "/", flags=MS_REC | MS_PRIVATE)
    kernel.mount("proc", "/proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC)
    files = spec.directory_of(index, generation)
    # As the kubelet writes them: https://kubernetes.io/docs/concepts/services-networking/dns-pod-service/
    search = f"{NAMESPACE}.svc.{DOMAIN} svc.{DOMAIN} {DOMAIN}"
    _bind_file(files / "resolv.conf", "/etc/resolv.conf", f"search {search}\nnameserver {GATEWAY}\noptions ndots:5\n")
    full = f"{host}.{LWS}.{NAMESPACE}.svc.{DOMAIN}"
    _bind_file(files / "hosts", "/etc/hosts", f"127.0.0.1\tlocalhost\n::1\tlocalhost\n{address}\t{full}\t{host}\n")
    _bind_file(files / "hostname", "/etc/hostname", host + "\n")
    # A desktop's nsswitch.conf asks daemons of the host over sockets that reach across network namespaces.
    _bind_file(files / "nsswitch.conf", "/etc/nsswitch.conf", "passwd: files\ngroup: files\nhosts: files dns\n")
    kernel.mount("shm", "/dev/shm", "tmpfs", MS_NOSUID | MS_NODEV, f"size={spec.shm_bytes},mode=1777")
    if spec.root_fs is None:
        _own_tmp(files, spec)
    os.chdir(here)


def _bind_file(file: Path, target: str, content: str) -> None:
    file.write_text(content)
    if os.path.exists(target):
        kernel.mount(str(file), target, flags=MS_BIND)


def _own_tmp(files: Path, spec: Spec) -> None:
    """A /tmp whose writes are the pod's own and which still shows the machine's: Ray and others keep state there."""
    layers = files / "tmp"
    layers.mkdir()
    kernel.mount("tmp", str(layers), "tmpfs", MS_NOSUID | MS_NODEV, "mode=1777")
    upper, work = layers / "upper", layers / "work"
    upper.mkdir()
    work.mkdir()
    upper.chmod(0o1777)
    # Seen through the overlay, files written here would be the pod's alone: these stay what they are outside.
    shared = [path for path in (spec.directory, os.getcwd()) if Path(path).is_relative_to("/tmp") and path != "/tmp"]
    held = {path: os.open(path, os.O_PATH) for path in shared}
    kernel.mount("overlay", "/tmp", "overlay", 0, f"lowerdir=/tmp,upperdir={upper},workdir={work},userxattr")
    for path, descriptor in held.items():
        kernel.mount(f"/proc/self/fd/{descriptor}", path, flags=MS_BIND | MS_REC)
        os.close(descriptor)
