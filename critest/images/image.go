package images

import (
	"encoding/json"
	"fmt"
	"runtime"
)

// Media types of manifests, of both families.
const (
	OCIManifest    = "application/vnd.oci.image.manifest.v1+json"
	OCIIndex       = "application/vnd.oci.image.index.v1+json"
	OCIConfig      = "application/vnd.oci.image.config.v1+json"
	DockerManifest = "application/vnd.docker.distribution.manifest.v2+json"
	DockerIndex    = "application/vnd.docker.distribution.manifest.list.v2+json"
	DockerConfig   = "application/vnd.docker.container.image.v1+json"
)

// Config is the runtime part of an image's configuration.
type Config struct {
	User         string              `json:"User,omitempty"`
	Env          []string            `json:"Env,omitempty"`
	Entrypoint   []string            `json:"Entrypoint,omitempty"`
	Cmd          []string            `json:"Cmd,omitempty"`
	WorkingDir   string              `json:"WorkingDir,omitempty"`
	Volumes      map[string]struct{} `json:"Volumes,omitempty"`
	ExposedPorts map[string]struct{} `json:"ExposedPorts,omitempty"`
	Labels       map[string]string   `json:"Labels,omitempty"`
	StopSignal   string              `json:"StopSignal,omitempty"`
}

// Spec is what an image is built from.
type Spec struct {
	Layers []Layer
	Config Config
	Docker bool   // Docker schema 2 media types instead of OCI's
	Arch   string // "": this machine's
	// RawConfig, when set, is served as the configuration as it is.
	RawConfig []byte
}

// Artifact is an image or an index as a registry holds it.
type Artifact struct {
	MediaType string
	Manifest  []byte
	Blobs     [][]byte   // by their digest
	Children  []Artifact // of an index
	Arch      string
	ConfigID  string   // digest of the configuration; "" for an index
	DiffIDs   []string // of the layers, the lowest first
}

type descriptor struct {
	MediaType string    `json:"mediaType"`
	Digest    string    `json:"digest"`
	Size      int       `json:"size"`
	Platform  *platform `json:"platform,omitempty"`
}

type platform struct {
	Architecture string `json:"architecture"`
	OS           string `json:"os"`
}

type manifest struct {
	SchemaVersion int          `json:"schemaVersion"`
	MediaType     string       `json:"mediaType"`
	Config        *descriptor  `json:"config,omitempty"`
	Layers        []descriptor `json:"layers,omitempty"`
	Manifests     []descriptor `json:"manifests,omitempty"`
}

type configFile struct {
	Created      string `json:"created"`
	Architecture string `json:"architecture"`
	OS           string `json:"os"`
	Config       Config `json:"config"`
	RootFS       struct {
		Type    string   `json:"type"`
		DiffIDs []string `json:"diff_ids"`
	} `json:"rootfs"`
}

// Digest is the digest of the manifest, by which the artifact can be pulled.
func (a Artifact) Digest() string { return Digest(a.Manifest) }

// Build makes an image.
func (s Spec) Build() (Artifact, error) {
	arch := s.Arch
	if arch == "" {
		arch = runtime.GOARCH
	}
	out := Artifact{MediaType: OCIManifest, Arch: arch}
	configType := OCIConfig
	if s.Docker {
		out.MediaType, configType = DockerManifest, DockerConfig
	}
	m := manifest{SchemaVersion: 2, MediaType: out.MediaType, Layers: []descriptor{}}
	cfg := configFile{Created: "2026-01-02T03:04:05Z", Architecture: arch, OS: "linux", Config: s.Config}
	cfg.RootFS.Type = "layers"
	cfg.RootFS.DiffIDs = []string{}
	for i, l := range s.Layers {
		blob, diffID, err := l.build()
		if err != nil {
			return Artifact{}, fmt.Errorf("layer %d: %w", i, err)
		}
		out.Blobs = append(out.Blobs, blob)
		cfg.RootFS.DiffIDs = append(cfg.RootFS.DiffIDs, diffID)
		m.Layers = append(m.Layers, descriptor{
			MediaType: l.Compression.mediaType(s.Docker), Digest: Digest(blob), Size: len(blob),
		})
	}
	rawConfig := s.RawConfig
	if rawConfig == nil {
		var err error
		if rawConfig, err = json.Marshal(cfg); err != nil {
			return Artifact{}, fmt.Errorf("encode the configuration: %w", err)
		}
	}
	m.Config = &descriptor{MediaType: configType, Digest: Digest(rawConfig), Size: len(rawConfig)}
	out.Blobs = append(out.Blobs, rawConfig)
	out.ConfigID = Digest(rawConfig)
	out.DiffIDs = cfg.RootFS.DiffIDs
	var err error
	if out.Manifest, err = json.Marshal(m); err != nil {
		return Artifact{}, fmt.Errorf("encode the manifest: %w", err)
	}
	return out, nil
}

func (l Layer) build() (blob []byte, diffID string, err error) {
	plain := l.plain
	if plain == nil {
		if plain, err = l.Tar(); err != nil {
			return nil, "", err
		}
	}
	if blob = l.gzipped; blob == nil || l.Compression != Gzip {
		if blob, err = l.Compression.compress(plain); err != nil {
			return nil, "", err
		}
	}
	if l.Damage != nil {
		blob = l.Damage(blob)
	}
	diffID = l.DiffID
	if diffID == "" {
		diffID = Digest(plain)
	}
	return blob, diffID, nil
}

// Index makes an index of images for several platforms.
func Index(docker bool, children ...Artifact) (Artifact, error) {
	out := Artifact{MediaType: OCIIndex, Children: children}
	if docker {
		out.MediaType = DockerIndex
	}
	m := manifest{SchemaVersion: 2, MediaType: out.MediaType}
	for _, c := range children {
		m.Manifests = append(m.Manifests, descriptor{
			MediaType: c.MediaType, Digest: c.Digest(), Size: len(c.Manifest),
			Platform: &platform{Architecture: c.Arch, OS: "linux"},
		})
	}
	var err error
	if out.Manifest, err = json.Marshal(m); err != nil {
		return Artifact{}, fmt.Errorf("encode the index: %w", err)
	}
	return out, nil
}
