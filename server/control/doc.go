// Package control serves the daemon's own interface: HTTP with JSON on a unix
// socket that only root opens. The commands of cri-runtime are its clients.
//
//	GET    /v1/pulls              pulls under way and the last ones that ended
//	GET    /v1/images             all images
//	GET    /v1/images/inspect     one image in detail            ?ref=
//	DELETE /v1/images             remove one                     ?ref=
//	POST   /v1/images/pull        pull, told line by line        {"reference": ...}
//	POST   /v1/images/check       compare with what was pulled   {"repair": false}
//	POST   /v1/images/import      images of an archive           ?name=, body: a tar
//	GET    /v1/images/export      an archive of one image        ?ref=
//	GET    /metrics               for Prometheus
//	GET    /debug/pprof/          profiles of the daemon
//
// Its nouns: a Server answers requests; Metrics count what the daemon does.
//
// Invariant: no request makes the daemon keep more than a bounded amount of
// memory, and none lasts longer than its client goes on reading or sending.
package control
