package credential

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

const peersAreKnown = true

// peerIn checks that the other end of a TCP connection on this machine is held
// by a process of the group, or by one that descends from it: some leave the
// group of who started them. remote is the other end's address, local ours.
func peerIn(group int, remote, local string) error {
	socket, err := socketOf(remote, local)
	if err != nil {
		return err
	}
	processes, err := processesOf(group)
	if err != nil {
		return err
	}
	for _, pid := range processes {
		dir := fmt.Sprintf("/proc/%d/fd", pid)
		files, err := os.ReadDir(dir)
		if err != nil {
			continue // it ended, or is another user's
		}
		for _, f := range files {
			if to, err := os.Readlink(filepath.Join(dir, f.Name())); err == nil && to == socket {
				return nil
			}
		}
	}
	return fmt.Errorf("the connection from %s is not the child's", remote)
}

// socketOf names the socket of a connection as /proc/PID/fd does.
func socketOf(from, to string) (string, error) {
	a, err := netip.ParseAddrPort(from)
	if err != nil {
		return "", err
	}
	b, err := netip.ParseAddrPort(to)
	if err != nil {
		return "", err
	}
	// A program may reach IPv4 by an IPv6 socket; Java does.
	for name, in6 := range map[string]bool{"/proc/self/net/tcp": false, "/proc/self/net/tcp6": true} {
		f, err := os.Open(name)
		if err != nil {
			continue
		}
		want := [2]string{procAddress(a, in6), procAddress(b, in6)}
		lines := bufio.NewScanner(f)
		for lines.Scan() {
			// sl local_address rem_address st tx:rx tr:when retrnsmt uid timeout inode …
			fields := strings.Fields(lines.Text())
			if len(fields) > 9 && fields[1] == want[0] && fields[2] == want[1] && fields[9] != "0" {
				f.Close()
				return "socket:[" + fields[9] + "]", nil
			}
		}
		f.Close()
	}
	return "", errors.New("the connection is not in /proc/net/tcp")
}

// procAddress writes an address as /proc/net/tcp does: 32 bits at a time, each
// in the machine's byte order.
func procAddress(a netip.AddrPort, in6 bool) string {
	b := a.Addr().Unmap().AsSlice()
	if in6 {
		b16 := a.Addr().As16()
		b = b16[:]
	}
	var s strings.Builder
	for ; len(b) >= 4; b = b[4:] {
		fmt.Fprintf(&s, "%08X", binary.NativeEndian.Uint32(b))
	}
	fmt.Fprintf(&s, ":%04X", a.Port())
	return s.String()
}

// processesOf lists the processes of a group and those that descend from it.
func processesOf(group int) (pids []int, err error) {
	dirs, err := os.ReadDir("/proc")
	if err != nil {
		return nil, err
	}
	type process struct{ parent, group int }
	all := map[int]process{}
	for _, d := range dirs {
		pid, err := strconv.Atoi(d.Name())
		if err != nil {
			continue
		}
		stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if err != nil {
			continue
		}
		// pid (name) state ppid pgrp …; the name may have anything in it
		_, rest, _ := strings.Cut(string(stat[max(0, strings.LastIndexByte(string(stat), ')')):]), " ")
		var p process
		var state string
		if _, err := fmt.Sscan(rest, &state, &p.parent, &p.group); err == nil {
			all[pid] = p
		}
	}
	for pid := range all {
		// At most as many steps as there are processes: the picture is not of one moment.
		for at, steps := pid, 0; at > 1 && steps < len(all); at, steps = all[at].parent, steps+1 {
			if all[at].group == group {
				pids = append(pids, pid)
				break
			}
		}
	}
	return pids, nil
}
