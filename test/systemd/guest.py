# SPDX-License-Identifier: Apache-2.0
# As much of a virtual machine as there has to be behind a stream socket: asks for the
# gateway's hardware address, and begins a connection by it.
#
#	guest.py SOCKET ADDRESS GATEWAY SERVER PORT
import socket
import struct
import sys

path, address, gateway, server, port = *sys.argv[1:5], int(sys.argv[5])
mac = bytes.fromhex("52540a0b0c0d")
here, router_at, there = (socket.inet_aton(a) for a in (address, gateway, server))


def checksum(b):
    b += b"\0" * (len(b) % 2)
    s = sum(struct.unpack("!%dH" % (len(b) // 2), b))
    while s >> 16:
        s = (s & 0xFFFF) + (s >> 16)
    return s ^ 0xFFFF


def send(frame):
    s.sendall(struct.pack("!I", len(frame)) + frame)


def exactly(n):
    b = b""
    while len(b) < n:
        more = s.recv(n - len(b))
        if not more:
            sys.exit("the connection ends")
        b += more
    return b


# Frames that nobody asked for, such as router advertisements, are passed over.
def until(wanted):
    while True:
        frame = exactly(struct.unpack("!I", exactly(4))[0])
        if wanted(frame):
            return frame


s = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
s.settimeout(20)
s.connect(path)
send(b"\xff" * 6 + mac + struct.pack("!HHHBBH", 0x0806, 1, 0x0800, 6, 4, 1) + mac + here + b"\0" * 6 + router_at)
router = until(lambda f: f[12:14] == b"\x08\x06" and f[20:22] == b"\0\2" and f[28:32] == router_at)[22:28]
tcp = struct.pack("!HHIIBBHHH", 40000, port, 1, 0, 5 << 4, 2, 65535, 0, 0)
tcp = tcp[:16] + struct.pack("!H", checksum(here + there + struct.pack("!BBH", 0, 6, len(tcp)) + tcp)) + tcp[18:]
ip = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(tcp), 0, 0, 64, 6, 0) + here + there
ip = ip[:10] + struct.pack("!H", checksum(ip)) + ip[12:]
send(router + mac + b"\x08\0" + ip + tcp)
answer = until(lambda f: f[12:14] == b"\x08\0" and f[23] == 6 and f[34:38] == struct.pack("!HH", port, 40000))
if answer[47] & 0x3F != 0x12:
    sys.exit("the answer's flags are %#x" % answer[47])
