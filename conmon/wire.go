package conmon

import (
	"encoding/binary"
	"fmt"

	"golang.org/x/sys/unix"
)

// The constants and sizes below repeat monitor/protocol.h; a test compares
// the two.
const (
	protocolVersion = 1
	packetMax       = 256
	descriptorsMax  = 253
	lineMax         = 65536
	slots           = 256
	slotFiles       = 8
)

const (
	typeHello       = 1
	typeHelloOK     = 2
	typeLaunch      = 3
	typeCreated     = 4
	typeStart       = 5
	typeStarted     = 6
	typeKill        = 7
	typeExec        = 8
	typeExecStarted = 9
	typeExecExited  = 10
	typeReopenLog   = 11
	typeStatus      = 12
	typeStatusReply = 13
	typeShutdown    = 14
	typeExited      = 15
	typeOK          = 16
	typeFailed      = 17
	typeAttach      = 18
	typeDetached    = 19
	typeResize      = 20
)

const (
	helloOKAttach    = 1
	launchTerminal   = 1
	launchStdin      = 2
	execKillOnHangup = 1
	attachStdin      = 1
	attachStdout     = 2
	attachStderr     = 4
	attachCloseStdin = 8
	exitStartFailed  = 1
	exitNoRecord     = 2
)

const (
	whereProtocol = 1
	whereMonitor  = 2
	whereStep     = 3
	whereState    = 4
)

const (
	detachedEnd  = 0
	detachedSlow = 1
)

const (
	atPlace        = 1
	atProgram      = 2
	atPipe         = 3
	atStatusSocket = 4
	atPIDNS        = 5
	atClone        = 6
	atWatch        = 7
	atChild        = 8
	atKill         = 9
	atExecs        = 10
	atAttach       = 11
	atResize       = 12
)

const (
	headerSize   = 16
	helloSize    = 8
	launchSize   = 16
	startedSize  = 16
	killSize     = 8
	execSize     = 8
	exitSize     = 32
	statusSize   = 72
	failedSize   = 16
	resizeSize   = 8
	detachedSize = 8
	reportSize   = 12
)

// packet is one message, without its descriptors.
type packet struct {
	kind  uint16
	flags uint16
	id    uint32
	body  []byte
}

type failed struct{ where, err, step uint32 }

// encode appends the wire form of p to b.
func (p *packet) encode(b []byte) []byte {
	le := binary.LittleEndian
	b = le.AppendUint16(b, p.kind)
	b = le.AppendUint16(b, p.flags)
	b = le.AppendUint32(b, p.id)
	b = le.AppendUint32(b, uint32(headerSize+len(p.body)))
	b = le.AppendUint32(b, 0)
	return append(b, p.body...)
}

// words makes a body of 32-bit values.
func words(values ...uint32) []byte {
	b := make([]byte, 0, 4*len(values))
	for _, v := range values {
		b = binary.LittleEndian.AppendUint32(b, v)
	}
	return b
}

// bodySize is the length of the body of a packet that a monitor sends, -1 for
// types it never sends.
func bodySize(kind uint16) int {
	switch kind {
	case typeHelloOK:
		return helloSize
	case typeCreated, typeStarted, typeExecStarted:
		return startedSize
	case typeExecExited, typeExited:
		return exitSize
	case typeStatusReply:
		return statusSize
	case typeFailed:
		return failedSize
	case typeDetached:
		return detachedSize
	case typeOK:
		return 0
	default:
		return -1
	}
}

// decodePacket checks what a monitor has sent; the body is a part of b.
func decodePacket(b []byte) (packet, error) {
	le := binary.LittleEndian
	if len(b) < headerSize || uint64(le.Uint32(b[8:])) != uint64(len(b)) {
		return packet{}, fmt.Errorf("%w: packet of %d bytes", ErrProtocol, len(b))
	}
	p := packet{kind: le.Uint16(b), flags: le.Uint16(b[2:]), id: le.Uint32(b[4:]), body: b[headerSize:]}
	if bodySize(p.kind) != len(p.body) {
		return packet{}, fmt.Errorf("%w: packet of type %d with %d bytes", ErrProtocol, p.kind, len(p.body))
	}
	return p, nil
}

func (p *packet) started() (pid uint32, ns int64) {
	return binary.LittleEndian.Uint32(p.body), int64(binary.LittleEndian.Uint64(p.body[8:]))
}

func (p *packet) failed() *failed {
	le := binary.LittleEndian
	return &failed{where: le.Uint32(p.body), err: le.Uint32(p.body[4:]), step: le.Uint32(p.body[8:])}
}

func (p *packet) status() Status {
	le := binary.LittleEndian
	return Status{
		State:        State(le.Uint32(p.body)),
		PID:          int(le.Uint32(p.body[4:])),
		CreatedAt:    int64(le.Uint64(p.body[8:])),
		StartedAt:    int64(le.Uint64(p.body[16:])),
		LogBytes:     le.Uint64(p.body[24:]),
		DroppedBytes: le.Uint64(p.body[32:]),
		Exit:         decodeExit(p.body[40:]),
	}
}

func decodeExit(b []byte) Exit {
	le := binary.LittleEndian
	flags := le.Uint32(b[12:])
	return Exit{
		Code:        int32(le.Uint32(b)),
		Signal:      unix.Signal(le.Uint32(b[4:])),
		OOMKilled:   le.Uint32(b[8:]) > 0,
		StartFailed: flags&exitStartFailed != 0,
		StartedAt:   int64(le.Uint64(b[16:])),
		FinishedAt:  int64(le.Uint64(b[24:])),
	}
}
