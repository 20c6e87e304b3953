package server

import (
	"fmt"
	"strings"
	"unicode"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cri-runtime/cri-runtime/imageservice"
	"github.com/cri-runtime/cri-runtime/oci"
)

const (
	maxIDBytes    = 128
	maxImageBytes = 4096
	maxArgBytes   = 128<<10 - 1 // MAX_ARG_STRLEN without the NUL
	// maxSeconds keeps a time-out within time.Duration.
	maxSeconds = 1 << 31
	// maxPorts keeps two channels for each port of a PortForward within a byte.
	maxPorts = 100
)

// invalid returns an error on one field of a request. The field is named as
// in api.proto, from the top of the request: config.metadata.name.
func invalid(field, format string, args ...any) error {
	return &oci.FieldError{Field: field, Reason: fmt.Sprintf(format, args...), Err: oci.ErrInvalid}
}

// checkID accepts what can be an id or its beginning; what can be a path can't.
func checkID(field, id string) error {
	switch {
	case id == "":
		return invalid(field, "is missing")
	case len(id) > maxIDBytes:
		return invalid(field, "%d bytes, at most %d are possible", len(id), maxIDBytes)
	}
	for i, r := range id {
		letter := r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9'
		if !letter && (i == 0 || !strings.ContainsRune("-_.", r)) {
			return invalid(field, "%q is not an id: %q cannot be part of one here", id, r)
		}
	}
	return nil
}

func checkTimeout(field string, seconds int64) error {
	if seconds < 0 {
		return invalid(field, "%d is negative", seconds)
	}
	return nil
}

// checkImage checks that there is a name; what it means is judged where it is
// looked up.
func checkImage(field string, image *runtimeapi.ImageSpec) error {
	name := image.GetImage()
	switch {
	case image == nil:
		return invalid(field, "is missing")
	case name == "":
		return invalid(field+".image", "is missing")
	case len(name) > maxImageBytes:
		return invalid(field+".image", "%d bytes, at most %d are possible", len(name), maxImageBytes)
	case strings.ContainsFunc(name, func(r rune) bool { return unicode.IsControl(r) || unicode.IsSpace(r) }):
		return invalid(field+".image", "%q holds white space or a control character", name)
	}
	return nil
}

// checkSpec checks all of an image's specification that is read or kept.
func (s *Server) checkSpec(field string, image *runtimeapi.ImageSpec) error {
	for name, text := range map[string]string{
		".user_specified_image": image.GetUserSpecifiedImage(), ".image_ref": image.GetImageRef(),
	} {
		switch {
		case len(text) > maxImageBytes:
			return invalid(field+name, "%d bytes, at most %d are possible", len(text), maxImageBytes)
		case strings.ContainsFunc(text, unicode.IsControl):
			return invalid(field+name, "%q holds a control character", text)
		}
	}
	return s.knownHandler(field+".runtime_handler", image.GetRuntimeHandler())
}

// checkImageSpec is both checks, where an image must be named.
func (s *Server) checkImageSpec(field string, image *runtimeapi.ImageSpec) error {
	if err := checkImage(field, image); err != nil {
		return err
	}
	return s.checkSpec(field, image)
}

func checkExec(req *runtimeapi.ExecSyncRequest) error {
	if err := checkID("container_id", req.GetContainerId()); err != nil {
		return err
	}
	if err := checkCommand(req.GetCmd()); err != nil {
		return err
	}
	return checkTimeout("timeout", req.GetTimeout())
}

func checkCommand(command []string) error {
	if len(command) == 0 || command[0] == "" {
		return invalid("cmd", "has no command")
	}
	for i, arg := range command {
		switch {
		case strings.ContainsRune(arg, 0):
			return invalid(fmt.Sprintf("cmd[%d]", i), "holds a NUL byte")
		case len(arg) > maxArgBytes:
			return invalid(fmt.Sprintf("cmd[%d]", i), "%d bytes, the kernel takes %d in one argument", len(arg), maxArgBytes)
		}
	}
	return nil
}

// checkStreams checks what an Exec or Attach request asks for.
func checkStreams(req interface {
	GetStdin() bool
	GetStdout() bool
	GetStderr() bool
	GetTty() bool
},
) error {
	switch {
	case req.GetTty() && req.GetStderr():
		return invalid("stderr", "a terminal has one stream of output, stdout")
	case !req.GetStdin() && !req.GetStdout() && !req.GetStderr():
		return invalid("stdin", "none of stdin, stdout and stderr is set")
	}
	return nil
}

// checkPorts checks the ports of a PortForward request; none means any.
func checkPorts(ports []int32) error {
	if len(ports) > maxPorts {
		return invalid("port", "%d ports, at most %d are possible", len(ports), maxPorts)
	}
	for i, port := range ports {
		if port < 1 || port > 65535 {
			return invalid(fmt.Sprintf("port[%d]", i), "%d is not between 1 and 65535", port)
		}
	}
	return nil
}

// checkRunnable refuses an artifact where a container is to run from it.
func checkRunnable(name string, image *imageservice.Image) error {
	if image.Artifact == "" {
		return nil
	}
	return invalid("config.image", "%s is an OCI artifact of type %q, not an image: a container can have it as a volume only",
		name, image.Artifact)
}
