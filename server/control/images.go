package control

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"time"

	"k8s.io/klog/v2"

	"github.com/cri-runtime/cri-runtime/imageservice"
)

func (s *Server) pulls(w http.ResponseWriter, _ *http.Request) error {
	return reply(w, s.store.Pulls())
}

func (s *Server) list(w http.ResponseWriter, _ *http.Request) error {
	return reply(w, imagesOf(s.store.Images()))
}

func imagesOf(list []*imageservice.Image) []Image {
	images := make([]Image, 0, len(list))
	for _, i := range list {
		images = append(images, imageOf(i))
	}
	return images
}

func (s *Server) inspect(w http.ResponseWriter, r *http.Request) error {
	ref, err := query(r, "ref")
	if err != nil {
		return err
	}
	details, err := s.store.Details(ref)
	if err != nil {
		return fmt.Errorf("inspect: %w", err)
	}
	return reply(w, details)
}

// remove says which image it removed: unlike CRI, a person wants to know of a
// name that was misspelt.
func (s *Server) remove(w http.ResponseWriter, r *http.Request) error {
	ref, err := query(r, "ref")
	if err != nil {
		return err
	}
	details, err := s.store.Details(ref)
	if err != nil {
		return fmt.Errorf("remove: %w", err)
	}
	if err := s.store.Remove(r.Context(), details.ID); err != nil {
		return err
	}
	klog.InfoS("Removed", "image", details.ID, "names", details.RepoTags)
	return reply(w, details)
}

// pull streams what becomes of a pull, one JSON value a line. A client that
// goes away leaves the pull, which ends with its last client.
func (s *Server) pull(w http.ResponseWriter, r *http.Request) error {
	var req PullRequest
	if err := body(w, r, &req); err != nil {
		return err
	}
	name, err := imageservice.Normalize(req.Reference)
	if err != nil {
		return err
	}
	var auth *imageservice.Auth
	if req.Username != "" || req.Password != "" {
		auth = &imageservice.Auth{Username: req.Username, Password: req.Password}
	}
	type result struct {
		image *imageservice.Image
		err   error
	}
	done := make(chan result, 1)
	go func() {
		image, err := s.store.Pull(r.Context(), req.Reference, auth)
		done <- result{image, err}
	}()
	lines := &lineWriter{w: w, control: http.NewResponseController(w)}
	w.Header().Set("Content-Type", "application/x-ndjson")
	tick := time.NewTicker(progressPeriod)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			lines.progress(s.latest(name))
			continue
		case got := <-done:
			lines.progress(s.latest(name))
			last := PullEvent{}
			if got.err != nil {
				last.Error = errorOf(got.err)
			} else {
				image := imageOf(got.image)
				last.Image = &image
			}
			lines.send(last)
			return nil
		}
	}
}

// latest returns the newest pull of a name.
func (s *Server) latest(name string) *imageservice.PullProgress {
	pulls := s.store.Pulls()
	var newest *imageservice.PullProgress
	for i := range pulls {
		if pulls[i].Reference == name && (newest == nil || pulls[i].ID > newest.ID) {
			newest = &pulls[i]
		}
	}
	return newest
}

// lineWriter sends JSON values, each at once. A client that takes none for
// streamTimeout is cut off, which ends its request's context.
type lineWriter struct {
	w       io.Writer
	control *http.ResponseController
}

func (l *lineWriter) progress(p *imageservice.PullProgress) {
	if p != nil {
		l.send(PullEvent{Progress: p})
	}
}

func (l *lineWriter) send(event PullEvent) {
	_ = l.control.SetWriteDeadline(time.Now().Add(streamTimeout))
	if err := json.NewEncoder(l.w).Encode(event); err == nil {
		_ = l.control.Flush() // the next write fails too
	}
}

func (s *Server) check(w http.ResponseWriter, r *http.Request) error {
	var req CheckRequest
	if err := body(w, r, &req); err != nil {
		return err
	}
	report, err := s.store.Check(r.Context(), imageservice.CheckOptions{Repair: req.Repair})
	if err != nil {
		return fmt.Errorf("check: %w", err)
	}
	return reply(w, report)
}

func (s *Server) load(w http.ResponseWriter, r *http.Request) error {
	source := &patientReader{r: r.Body, control: http.NewResponseController(w)}
	images, err := s.store.Import(r.Context(), source, r.URL.Query().Get("name"))
	if err != nil {
		// A client that is still sending would not see the answer.
		_, _ = io.CopyN(io.Discard, source, maxDrained)
		return err
	}
	for _, i := range images {
		klog.InfoS("Imported", "image", i.ID, "names", i.RepoTags)
	}
	return reply(w, Imported{Images: imagesOf(images)})
}

// patientReader gives the client time for each piece of a long body.
type patientReader struct {
	r       io.Reader
	control *http.ResponseController
}

// Read implements io.Reader.
func (p *patientReader) Read(b []byte) (int, error) {
	if err := p.control.SetReadDeadline(time.Now().Add(streamTimeout)); err != nil {
		return 0, err
	}
	return p.r.Read(b)
}

// save streams an archive. What goes wrong once it has begun is in a trailer;
// an archive that was cut short has no end, so nobody takes it for whole.
func (s *Server) save(w http.ResponseWriter, r *http.Request) error {
	ref, err := query(r, "ref")
	if err != nil {
		return err
	}
	export, err := s.store.Export(r.Context(), ref)
	if err != nil {
		return err
	}
	defer export.Close()
	header := w.Header()
	header.Set("Content-Type", "application/x-tar")
	header.Set("Trailer", TrailerError)
	header.Set(HeaderID, export.ID)
	header.Set(HeaderNewID, export.NewID)
	header.Set(HeaderManifest, export.Manifest.String())
	header.Set(HeaderSize, strconv.FormatInt(export.Size, 10))
	err = export.Write(r.Context(), &patientWriter{w: w, control: http.NewResponseController(w)})
	if err != nil {
		if context.Cause(r.Context()) == nil {
			klog.ErrorS(err, "Export", "image", export.ID)
		}
		header.Set(TrailerError, strconv.QuoteToASCII(err.Error()))
	}
	return nil
}

// patientWriter gives the client time for each piece of a long answer.
type patientWriter struct {
	w       io.Writer
	control *http.ResponseController
}

// Write implements io.Writer.
func (p *patientWriter) Write(b []byte) (int, error) {
	if err := p.control.SetWriteDeadline(time.Now().Add(streamTimeout)); err != nil {
		return 0, err
	}
	return p.w.Write(b)
}
