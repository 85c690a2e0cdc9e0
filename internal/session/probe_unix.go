//go:build unix

package session

import (
	"net"
	"syscall"
)

// peeker peeks at the socket. Control is used in the place of Read because an old read deadline doesn't stop it.
type peeker struct {
	rc    syscall.RawConn
	call  func(fd uintptr) // made once: a closure for each look would allocate
	state *socketState
}

func (p *peeker) init(raw net.Conn) {
	sc, ok := raw.(syscall.Conn)
	if !ok {
		return
	}
	rc, err := sc.SyscallConn()
	if err != nil {
		return
	}
	state := new(socketState)
	p.rc, p.state = rc, state
	p.call = func(fd uintptr) {
		var b [1]byte
		for {
			n, _, err := syscall.Recvfrom(int(fd), b[:], syscall.MSG_PEEK|syscall.MSG_DONTWAIT)
			switch {
			case err == syscall.EINTR:
				continue
			case err == syscall.EAGAIN || err == syscall.EWOULDBLOCK:
				*state = socketQuiet
			case err != nil || n == 0:
				*state = socketDead
			default:
				*state = socketData
			}
			return
		}
	}
}

func (p *peeker) look() socketState {
	if p.rc == nil {
		return socketUnknown
	}
	*p.state = socketDead
	if err := p.rc.Control(p.call); err != nil {
		return socketDead
	}
	return *p.state
}
