package server

import "fmt"

// unimplemented lists every RPC of cri-api v0.37 that this version doesn't
// answer, by its full method name, with what the client is told. A test
// compares the list with what the services define.
func unimplemented() map[string]string {
	const checkpoint = "checkpoint and restore are not served yet"
	rpcs := map[string]string{
		"CheckpointContainer": checkpoint,
		"CheckpointPod":       checkpoint,
		"RestorePod":          checkpoint,
	}
	methods := map[string]string{}
	for rpc, why := range rpcs {
		methods["/runtime.v1.RuntimeService/"+rpc] = why
	}
	return methods
}

// checkImplemented refuses the RPCs of the list.
func checkImplemented(list map[string]string, method string) error {
	if why, ok := list[method]; ok {
		return fmt.Errorf("%s: %w by %s: %s", rpcName(method), errUnimplemented, runtimeName, why)
	}
	return nil
}
