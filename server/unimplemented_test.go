package server

import (
	"strings"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
	"google.golang.org/protobuf/types/dynamicpb"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// allRPCs is every method of the two services, as cri-api describes them.
func allRPCs(t *testing.T) []protoreflect.MethodDescriptor {
	t.Helper()
	var methods []protoreflect.MethodDescriptor
	for _, service := range []grpc.ServiceDesc{runtimeapi.RuntimeService_ServiceDesc, runtimeapi.ImageService_ServiceDesc} {
		d, err := protoregistry.GlobalFiles.FindDescriptorByName(protoreflect.FullName(service.ServiceName))
		if err != nil {
			t.Fatal(err)
		}
		list := d.(protoreflect.ServiceDescriptor).Methods()
		for i := range list.Len() {
			methods = append(methods, list.Get(i))
		}
	}
	return methods
}

// Every RPC is either answered by this server or in the list, and the list has
// nothing else: an RPC that a new cri-api brings fails this test until someone decides.
func TestEveryRPC(t *testing.T) {
	const inCRI037 = 43
	captureLog(t, "0")
	list := unimplemented()
	images := newMemoryImages()
	conn := serve(t, testConfig(t, images)).conn
	methods := allRPCs(t)
	if len(methods) != inCRI037 {
		t.Errorf("cri-api has %d RPCs, %d were decided upon", len(methods), inCRI037)
	}
	for _, m := range methods {
		name := "/" + string(m.Parent().FullName()) + "/" + string(m.Name())
		why, listed := list[name]
		delete(list, name)
		t.Run(string(m.Name()), func(t *testing.T) {
			err := invoke(t, conn, name, m)
			if got := status.Code(err) == codes.Unimplemented; got != listed {
				t.Fatalf("answered with %v, listed: %v", err, listed)
			}
			if listed && !strings.Contains(err.Error(), string(m.Name())+": not implemented by cri-runtime: "+why) {
				t.Errorf("unclear: %v", err)
			}
		})
	}
	for name := range list {
		t.Errorf("%s is listed, but not an RPC", name)
	}
}

// invoke calls a method with an empty request.
func invoke(t *testing.T, conn *grpc.ClientConn, name string, m protoreflect.MethodDescriptor) error {
	t.Helper()
	req, resp := dynamicpb.NewMessage(m.Input()), dynamicpb.NewMessage(m.Output())
	if !m.IsStreamingServer() {
		return conn.Invoke(t.Context(), name, req, resp)
	}
	stream, err := conn.NewStream(t.Context(), &grpc.StreamDesc{ServerStreams: true}, name)
	if err != nil {
		t.Fatal(err)
	}
	if err := stream.SendMsg(req); err != nil {
		return err
	}
	if err := stream.CloseSend(); err != nil {
		return err
	}
	if m.Name() == "GetContainerEvents" { // it has no end
		_, err := stream.Header()
		return err
	}
	return stream.RecvMsg(resp)
}

func TestUnknownService(t *testing.T) {
	conn := serve(t, testConfig(t, newMemoryImages())).conn
	err := conn.Invoke(t.Context(), "/runtime.v1alpha2.RuntimeService/Version",
		&runtimeapi.VersionRequest{}, &runtimeapi.VersionResponse{})
	if status.Code(err) != codes.Unimplemented {
		t.Errorf("got %v", err)
	}
}
