package imageservice

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"

	"github.com/cri-runtime/cri-runtime/imageservice/lanes"
	"github.com/cri-runtime/cri-runtime/sandbox/fault"
)

const (
	defaultParallelLayers    = 4
	defaultNoProgressTimeout = time.Minute
)

// Config is what a Store is opened with.
type Config struct {
	Root              string        // the store's own directory, such as /var/lib/cri-runtime/images
	RegistryConfigDir string        // directory of hosts.toml directories, "" for none
	PinnedImages      []string      // references; one that ends in * stands for all that start so
	MaxParallelLayers int           // layers under way at once, of all pulls together; 0: 4
	NoProgressTimeout time.Duration // a registry that sends nothing for so long is given up; 0: 1 min
	// PullEnded, if not nil, is told of each pull at its end. It must not block.
	PullEnded func(PullProgress, error)
	Proxy     Proxy
	Policy    Policy
}

// Store holds all images and layers. Its methods may be called at once.
type Store struct {
	config  Config
	pinned  []pattern
	policy  *policy
	proxy   func(*url.URL) (*url.URL, error)
	lock    *os.File
	slots   chan struct{} // one for each layer under way
	buffers sync.Pool
	hashes  *lanes.Pool
	limits  limits
	block   uint64 // block size of the file system
	umask   uint32

	pulls      flights[*Image]
	downloads  flights[struct{}]
	tracker    *tracker
	background sync.WaitGroup
	small      smallParts
	trash      *trash

	// disk is held while records and layers change their names, and before mu.
	disk sync.Mutex

	mu        sync.Mutex // guards all below; never held over a system call
	images    map[string]*entry
	tags      map[string]string // to ids
	layers    map[digest.Digest]*layerRecord
	pins      map[digest.Digest]int
	holds     map[string]map[string]struct{} // users by image id
	orphans   []string                       // layers/ of no record: see orphan.go
	serial    uint64                         // the highest of a record
	collected bool
	closed    bool
}

// entry is an image as the store knows it.
type entry struct {
	record  *imageRecord
	config  *ocispec.Image
	size    uint64 // of the record's files
	torn    bool   // config.json, manifest.json or parents/ are missing or damaged
	damaged bool   // it is torn, or a layer is missing
	// unreadable: too little is known of it, see orphan.go. Unless it is held it
	// goes with Collect.
	unreadable bool
	image      *Image // nil when removed or damaged
}

// Open opens the store and makes it when there is none. It reads the records;
// it does not look into the layers. What interrupted pulls left is removed in
// the background.
func Open(config Config) (*Store, error) {
	if config.MaxParallelLayers <= 0 {
		config.MaxParallelLayers = defaultParallelLayers
	}
	if config.NoProgressTimeout <= 0 {
		config.NoProgressTimeout = defaultNoProgressTimeout
	}
	s := &Store{
		config:    config,
		slots:     make(chan struct{}, config.MaxParallelLayers),
		limits:    defaultLimits(),
		images:    map[string]*entry{},
		tags:      map[string]string{},
		layers:    map[digest.Digest]*layerRecord{},
		pins:      map[digest.Digest]int{},
		holds:     map[string]map[string]struct{}{},
		pulls:     newFlights[*Image](),
		downloads: newFlights[struct{}](),
		tracker:   newTracker(),
		trash:     newTrash(),
		hashes:    lanes.New(),
	}
	s.buffers.New = func() any { return new([chunkSize]byte) }
	for _, text := range config.PinnedImages {
		p, err := parsePattern(text)
		if err != nil {
			return nil, fmt.Errorf("pinned image: %w", err)
		}
		s.pinned = append(s.pinned, p)
	}
	var err error
	if s.proxy, err = config.Proxy.function(); err != nil {
		return nil, err
	}
	if s.policy, err = readPolicy(config.Policy); err != nil {
		return nil, err
	}
	if err := s.openRoot(); err != nil {
		return nil, err
	}
	if err := s.load(); err != nil {
		return nil, errors.Join(err, s.lock.Close())
	}
	return s, nil
}

// openRoot makes the directories and takes the lock.
func (s *Store) openRoot() error {
	for _, dir := range []string{s.config.Root, s.path("records"), s.path("layers"), s.path("ingest")} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return fmt.Errorf("open image store: %w", err)
		}
	}
	lock, err := os.OpenFile(s.path("lock"), os.O_RDONLY|os.O_CREATE, 0o600)
	if err != nil {
		return fmt.Errorf("open image store: %w", err)
	}
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		if errors.Is(err, unix.EWOULDBLOCK) {
			err = ErrLocked
		}
		return errors.Join(fmt.Errorf("open %s: %w", s.config.Root, err), lock.Close())
	}
	// What is unpacked there would inherit it.
	err = unix.Removexattr(s.path("ingest"), defaultACL)
	readOnly := errors.Is(err, unix.EROFS) // nothing will be unpacked, but what is here is of use
	if err != nil && !readOnly && !errors.Is(err, unix.ENODATA) && !errors.Is(err, unix.ENOTSUP) {
		return errors.Join(&os.PathError{Op: "remove default ACL", Path: s.path("ingest"), Err: err}, lock.Close())
	}
	if err := spread(s.path("ingest")); err != nil && !readOnly {
		return errors.Join(err, lock.Close())
	}
	var st unix.Statfs_t
	if err := unix.Statfs(s.config.Root, &st); err != nil {
		return errors.Join(&os.PathError{Op: "statfs", Path: s.config.Root, Err: err}, lock.Close())
	}
	s.block = uint64(max(st.Bsize, 512))
	s.umask = processUmask()
	s.lock = lock
	return nil
}

// load reads the records. A layer of no record may be torn and goes, though not
// before Collect; an image that misses a layer or a document is not listed, and
// mended by its next pull.
func (s *Store) load() error {
	dirs, err := os.ReadDir(s.path("records"))
	if err != nil {
		return fmt.Errorf("open image store: %w", err)
	}
	var broken []string
	for _, d := range dirs {
		dir := s.path("records", d.Name())
		e, err := readEntry(dir)
		if err != nil {
			broken = append(broken, dir)
			continue
		}
		for _, diffID := range e.record.Layers {
			s.loadLayer(diffID)
		}
		s.images[e.record.ID] = e
	}
	s.loadTags()
	for _, e := range s.images {
		s.present(e)
	}
	dirs, err = os.ReadDir(s.path("layers"))
	if err != nil {
		return fmt.Errorf("open image store: %w", err)
	}
	for _, d := range dirs {
		if !s.knows(d.Name()) {
			s.orphans = append(s.orphans, d.Name())
		}
	}
	fault.Point("images.read")
	for _, path := range broken {
		if err := os.Rename(path, s.ingestPath()); err != nil {
			return fmt.Errorf("open image store: %w", err)
		}
	}
	return s.clearIngest()
}

// loadLayer reads the record of a layer, if it is there and whole.
func (s *Store) loadLayer(diffID digest.Digest) {
	if s.layers[diffID] != nil || diffID.Validate() != nil {
		return
	}
	if record, err := readLayer(s.layerPath(diffID)); err == nil {
		s.layers[diffID] = record
	}
}

// loadTags gives a tag that two records name to the later one: a crash came
// between the writing of the new image and the rewriting of the old one, which
// is made up for, or the tag would come back with the removal of the later one.
func (s *Store) loadTags() {
	stale := map[string]*entry{}
	for _, e := range slices.SortedFunc(maps.Values(s.images), func(a, b *entry) int {
		return cmp.Or(cmp.Compare(a.record.Serial, b.record.Serial), a.record.PulledAt.Compare(b.record.PulledAt))
	}) {
		for _, tag := range e.record.Tags {
			if old := s.images[s.tags[tag]]; old != nil {
				old.record.Tags = slices.DeleteFunc(old.record.Tags, func(t string) bool { return t == tag })
				stale[old.record.ID] = old
			}
			s.tags[tag] = e.record.ID
		}
		s.serial = max(s.serial, e.record.Serial)
	}
	for id, e := range stale {
		fault.Point("images.tag.stale")
		// Should this fail, the next start tries it again.
		_ = writeRecord(s.recordPath(id), e.record)
	}
}

// knows tells whether layers/NAME belongs to an image.
func (s *Store) knows(name string) bool {
	for diffID := range s.layers {
		if diffID.Encoded() == name {
			return true
		}
	}
	return false
}

// clearIngest removes in the background what is in ingest/ now.
func (s *Store) clearIngest() error {
	left, err := os.ReadDir(s.path("ingest"))
	if err != nil {
		return fmt.Errorf("open image store: %w", err)
	}
	if len(left) == 0 {
		return nil
	}
	fault.Point("images.ingest.read")
	s.background.Go(func() {
		for _, d := range left {
			_ = s.remove(s.path("ingest", d.Name()))
		}
	})
	return nil
}

// Close ends the pulls under way and waits for them. The images stay.
func (s *Store) Close() error {
	s.mu.Lock()
	closed := s.closed
	s.closed = true
	s.mu.Unlock()
	if closed {
		return nil
	}
	s.pulls.close()
	s.downloads.close()
	s.trash.close()
	s.background.Wait()
	return s.lock.Close()
}

// path returns a path below the root.
func (s *Store) path(parts ...string) string {
	return filepath.Join(append([]string{s.config.Root}, parts...)...)
}

func (s *Store) layerPath(diffID digest.Digest) string {
	return s.path("layers", diffID.Encoded())
}

func (s *Store) recordPath(id string) string {
	_, encoded, _ := strings.Cut(id, ":")
	return s.path("records", encoded)
}

// present makes e.image anew from e.record. The caller holds mu.
func (s *Store) present(e *entry) {
	r := e.record
	e.image = nil
	e.damaged = e.torn || slices.ContainsFunc(r.Layers, func(d digest.Digest) bool { return s.layers[d] == nil })
	if r.Removed || e.damaged {
		return
	}
	image := &Image{
		ID:          r.ID,
		RepoTags:    slices.Sorted(slices.Values(r.Tags)),
		RepoDigests: slices.Sorted(slices.Values(r.Digests)),
		Size:        e.size,
		Config:      *e.config,
		Manifest:    r.Manifest,
		PulledAt:    r.PulledAt,
	}
	if image.Artifact = r.Artifact; r.Artifact != "" {
		image.Config = ocispec.Image{} // it has none; what was read is its manifest
	}
	for _, diffID := range unique(r.Layers) {
		image.Size += s.layers[diffID].Bytes
	}
	image.Layers = s.lowerDirs(r)
	for _, n := range append(r.Tags, r.Digests...) {
		image.Pinned = image.Pinned || slices.ContainsFunc(s.pinned, func(p pattern) bool { return p.match(n) })
	}
	e.image = image
}

// lowerDirs returns the directories of an overlay, the top one first. A layer
// that occurs twice is left out where it lies lower: overlayfs refuses to see
// one twice, and whatever the lower one adds or hides, the upper one does too.
func (s *Store) lowerDirs(r *imageRecord) []string {
	var dirs []string
	if r.Parents {
		dirs = append(dirs, filepath.Join(s.recordPath(r.ID), parentsDir))
	}
	seen := map[digest.Digest]bool{}
	for _, diffID := range slices.Backward(r.Layers) {
		if seen[diffID] {
			continue
		}
		seen[diffID] = true
		dirs = append(dirs, filepath.Join(s.layerPath(diffID), diffDir))
		if s.layers[diffID].OpaqueRoot {
			break
		}
	}
	return dirs
}

func unique(ids []digest.Digest) []digest.Digest {
	seen := map[digest.Digest]bool{}
	var out []digest.Digest
	for _, id := range ids {
		if !seen[id] {
			seen[id] = true
			out = append(out, id)
		}
	}
	return out
}

// Image returns the image with that id (in full, or at least 4 digits that fit
// only one), tag or digest. Docker Hub's defaults complete a name.
func (s *Store) Image(ref string) (*Image, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	e, err := s.find(ref)
	if err != nil {
		return nil, err
	}
	return e.image, nil
}

// Images returns all images, ordered by id.
func (s *Store) Images() []*Image {
	s.mu.Lock()
	defer s.mu.Unlock()
	images := make([]*Image, 0, len(s.images))
	for _, e := range s.images {
		if e.image != nil {
			images = append(images, e.image)
		}
	}
	slices.SortFunc(images, func(a, b *Image) int { return strings.Compare(a.ID, b.ID) })
	return images
}

// find looks a listed image up. A name goes before a shortened id, as "beef"
// may be both. The caller holds mu.
func (s *Store) find(ref string) (*entry, error) {
	digits, prefixed, isID := shortID(ref)
	if isID && len(digits) == fullIDLength {
		if e := s.images["sha256:"+digits]; e != nil && e.image != nil {
			return e, nil
		}
	}
	n, parseErr := parseReference(ref)
	if parseErr == nil {
		if e := s.byName(n); e != nil {
			return e, nil
		}
	}
	if !isID {
		if parseErr != nil {
			return nil, parseErr
		}
		return nil, fmt.Errorf("%w: %s", ErrNotFound, n)
	}
	var found *entry
	for id, e := range s.images {
		if e.image == nil || !strings.HasPrefix(id, "sha256:"+digits) {
			continue
		}
		if found != nil {
			return nil, fmt.Errorf("%w: %s", ErrAmbiguous, ref)
		}
		found = e
	}
	if found == nil {
		if parseErr == nil && !prefixed {
			return nil, fmt.Errorf("%w: %s", ErrNotFound, n)
		}
		return nil, fmt.Errorf("%w: %s", ErrNotFound, ref)
	}
	return found, nil
}

// byName looks a listed image up by tag or digest. The caller holds mu.
func (s *Store) byName(n name) *entry {
	if n.digest == "" {
		if e := s.images[s.tags[n.String()]]; e != nil && e.image != nil {
			return e
		}
		return nil
	}
	text := n.String()
	for _, e := range s.images {
		if e.image != nil && slices.Contains(e.record.Digests, text) {
			return e
		}
	}
	return nil
}

// Pull brings the image that name refers to from its registry, and returns it.
// Layers and images that are here already are not downloaded again. Pulls of
// the same name with the same auth at once are one pull; each may leave it by
// its ctx, and with the last one the work stops and leaves nothing.
func (s *Store) Pull(ctx context.Context, name string, auth *Auth) (*Image, error) {
	n, err := parseReference(name)
	if err != nil {
		return nil, err
	}
	creds, err := newCredentials(auth)
	if err != nil {
		return nil, fmt.Errorf("pull %s: %w", n, err)
	}
	image, _, err := s.pulls.do(ctx, flightKey(n, creds), func(ctx context.Context) (*Image, error) {
		return s.pull(ctx, n, creds)
	})
	if err != nil {
		return nil, fmt.Errorf("pull %s: %w", n, err)
	}
	return image, nil
}

func flightKey(n name, creds credentials) string { return n.String() + " " + creds.key() }

// Damaged returns the ids of the images that are not listed because a layer or
// a document of theirs was found to be missing or unreadable. A pull mends them.
func (s *Store) Damaged() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	var ids []string
	for id, e := range s.images {
		if e.damaged {
			ids = append(ids, id)
		}
	}
	slices.Sort(ids)
	return ids
}
