"""Where the ranks of a learner group find each other: torch's store, served by rank 0 on one address of its node."""

import socket

import torch


def door(host: str) -> socket.socket:
    """A free port of this address, held from now on: torch, left to itself, would listen on every address."""
    return socket.create_server((host, 0))


def store(rank: int, world: int, host: str, port: int, held: socket.socket | None) -> torch.distributed.TCPStore:
    """Joins the store at an address. held: rank 0's door, which is the store's from here on; None opens one now."""
    if rank != 0:
        return torch.distributed.TCPStore(host, port, world, is_master=False)
    descriptor = (held or socket.create_server((host, port))).detach()
    return torch.distributed.TCPStore(
        host, port, world, is_master=True, wait_for_workers=False, master_listen_fd=descriptor
    )
