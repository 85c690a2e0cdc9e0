//go:build unix

package session

import (
	"net"
	"sync"
	"syscall"
)

// peeker peeks at the socket. Control is used in the place of Read because an old read deadline doesn't stop it.
type peeker struct {
	rc    syscall.RawConn
	call  func(fd uintptr) // onLook, made once: a closure for each look would allocate
	state socketState
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
	p.rc, p.call = rc, p.onLook
}

func (p *peeker) ready() bool { return p.rc != nil }

func (p *peeker) onLook(fd uintptr) {
	var b [1]byte
	for {
		n, _, err := syscall.Recvfrom(int(fd), b[:], syscall.MSG_PEEK|syscall.MSG_DONTWAIT)
		switch {
		case err == syscall.EINTR:
			continue
		case err == syscall.EAGAIN || err == syscall.EWOULDBLOCK:
			p.state = socketQuiet
		case err != nil || n == 0:
			p.state = socketDead
		default:
			p.state = socketData
		}
		return
	}
}

func (p *peeker) look() socketState {
	if p.rc == nil {
		return socketUnknown
	}
	p.state = socketDead
	if err := p.rc.Control(p.call); err != nil {
		return socketDead
	}
	return p.state
}

// talker is a talk under way.
type talker struct {
	conn  *Conn
	out   []byte
	point int // the commit point in out
	n     int // how much was written
	spoke bool
	speak func(fd uintptr) bool // onTalk, made once
}

var talkers = sync.Pool{New: func() any {
	t := new(talker)
	t.speak = t.onTalk
	return t
}}

// talk looks into the socket, and where it is quiet writes b, as far as the kernel takes it at once. Where that is all of it, it waits until there is something to read, or the
// time is over, which the next Read tells. It returns how much was written, and what it saw first: socketUnknown where it didn't come to a look.
func (c *Conn) talk(b []byte, point int) (n int, state socketState) {
	t := talkers.Get().(*talker)
	t.conn, t.out, t.point, t.n, t.spoke = c, b, point, 0, false
	p := &c.prober.peek
	p.state = socketUnknown
	_ = p.rc.Read(t.speak)
	n, t.conn, t.out = t.n, nil, nil
	talkers.Put(t)
	return n, p.state
}

// onTalk is called when a Read begins, and again when there is something to read. Before it writes it looks for that in vain: so nothing that comes later is missed.
func (t *talker) onTalk(fd uintptr) (done bool) {
	if t.spoke {
		return true
	}
	t.spoke = true
	p := &t.conn.prober.peek
	if p.onLook(fd); p.state != socketQuiet {
		return true
	}
	n, err := syscall.Write(int(fd), t.out)
	for err == syscall.EINTR {
		n, err = syscall.Write(int(fd), t.out)
	}
	t.n = max(n, 0) // an error comes again
	return !t.conn.sent(t.n, t.point, len(t.out))
}
