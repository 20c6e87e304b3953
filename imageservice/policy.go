package imageservice

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
)

// What a rule of a Policy decides.
const (
	PolicyAccept   = "accept"   // every image is taken
	PolicyReject   = "reject"   // none is
	PolicySigstore = "sigstore" // one that a key of the rule has signed
)

const (
	anyOther           = "*"          // the prefix of a rule for all that no other rule is for
	identityRepository = "repository" // what was signed carries the name that is pulled
	identityAny        = "any"
	maxRules           = 1024
)

var errPolicy = errors.New("invalid image policy")

// Policy says which images may come in. It is asked on every pull, before
// anything of the image but the digest of its name is known. Images that are
// here already are used without it.
type Policy struct {
	Default string // PolicyAccept, "" for that, or PolicyReject
	Rules   []PolicyRule
}

// PolicyRule is for the images of one repository and all below it; of several
// that fit, the one with the longest prefix decides.
type PolicyRule struct {
	Prefix string   // docker.io/library, registry.example:5000, or * for all others
	Type   string   // PolicyAccept, PolicyReject or PolicySigstore
	Keys   []string // files with public keys in PEM; one of them must have signed
	// Identity is which name the signature must be for: "repository", or "" for
	// that, the one that is pulled; another repository's; or "any".
	Identity string
}

// policy is a Policy that was read.
type policy struct {
	rules    []rule // the longest prefix first
	fallback rule
}

type rule struct {
	PolicyRule
	keys        []publicKey
	fingerprint string // of what a signature was checked against
}

func readPolicy(p Policy) (*policy, error) {
	out := &policy{fallback: rule{PolicyRule: PolicyRule{Prefix: anyOther, Type: p.Default}}}
	switch p.Default {
	case "":
		out.fallback.Type = PolicyAccept
	case PolicyAccept, PolicyReject:
	default:
		return nil, fmt.Errorf("%w: default: %q is neither %q nor %q; for signatures write a rule with the prefix %q",
			errPolicy, p.Default, PolicyAccept, PolicyReject, anyOther)
	}
	if len(p.Rules) > maxRules {
		return nil, fmt.Errorf("%w: %d rules, at most %d are read", errPolicy, len(p.Rules), maxRules)
	}
	seen := map[string]bool{}
	for i := range p.Rules {
		r, err := readRule(p.Rules[i])
		if err == nil && seen[r.Prefix] {
			err = errors.New("prefix: another rule has it too")
		}
		if err != nil {
			return nil, fmt.Errorf("%w: rule %d (%q): %w", errPolicy, i+1, p.Rules[i].Prefix, err)
		}
		seen[r.Prefix] = true
		if r.Prefix == anyOther {
			out.fallback = *r
			continue
		}
		out.rules = append(out.rules, *r)
	}
	slices.SortFunc(out.rules, func(a, b rule) int { return len(b.Prefix) - len(a.Prefix) })
	return out, nil
}

func readRule(p PolicyRule) (*rule, error) {
	if err := checkPrefix(p.Prefix); err != nil {
		return nil, fmt.Errorf("prefix: %w", err)
	}
	r := &rule{PolicyRule: p}
	switch p.Type {
	case PolicyAccept, PolicyReject:
		if len(p.Keys) > 0 || p.Identity != "" {
			return nil, fmt.Errorf("keys and identity have no meaning for the type %q", p.Type)
		}
		return r, nil
	case PolicySigstore:
	case "keyless", "fulcio":
		return nil, errKeyless
	default:
		return nil, fmt.Errorf("type: %q is none of %q, %q, %q", p.Type, PolicyAccept, PolicyReject, PolicySigstore)
	}
	switch p.Identity {
	case "":
		r.Identity = identityRepository
	case identityRepository, identityAny:
	default:
		named, err := reference.ParseNormalizedNamed(p.Identity)
		if err != nil || !reference.IsNameOnly(named) {
			return nil, fmt.Errorf("identity: %q is neither %q, %q nor a repository", p.Identity, identityRepository, identityAny)
		}
		r.Identity = named.Name()
	}
	if len(p.Keys) == 0 {
		return nil, fmt.Errorf("keys: no file with a public key is named; %w", errKeyless)
	}
	hash := sha256.New()
	fmt.Fprintf(hash, "%q", r.Identity)
	for _, file := range p.Keys {
		keys, err := readKeys(file)
		if err != nil {
			return nil, fmt.Errorf("keys: %w", err)
		}
		r.keys = append(r.keys, keys...)
	}
	for _, k := range r.keys {
		fmt.Fprintf(hash, " %q", k.id)
	}
	r.fingerprint = hex.EncodeToString(hash.Sum(nil))
	return r, nil
}

// checkPrefix wants what no reading can mistake: a registry's name, in full.
func checkPrefix(prefix string) error {
	if prefix == anyOther {
		return nil
	}
	registry, repository, _ := strings.Cut(prefix, "/")
	if registry != "localhost" && !strings.ContainsAny(registry, ".:") {
		return fmt.Errorf("%q does not begin with a registry, as docker.io/library does; %q is for all", prefix, anyOther)
	}
	if registry == "index.docker.io" {
		return errors.New("write docker.io, as names of images have it")
	}
	probe := prefix
	if repository == "" {
		probe = registry + "/x"
	}
	named, err := reference.ParseNormalizedNamed(probe)
	if err != nil || named.String() != probe && reference.Domain(named) != "docker.io" || !reference.IsNameOnly(named) ||
		strings.HasSuffix(prefix, "/") {
		return fmt.Errorf("%q is no registry or repository", prefix)
	}
	return nil
}

// rule finds the rule for a repository.
func (p *policy) rule(repository string) *rule {
	for i := range p.rules {
		prefix := p.rules[i].Prefix
		if repository == prefix || strings.HasPrefix(repository, prefix+"/") {
			return &p.rules[i]
		}
	}
	return &p.fallback
}

// admit asks the policy about what a name stands for. The verdict is what is
// recorded, so that the same need not be checked again.
func (s *Store) admit(ctx context.Context, sess *session, root digest.Digest) (verdict string, err error) {
	r := s.policy.rule(sess.name.repository)
	switch r.Type {
	case PolicyAccept:
		return "", nil
	case PolicyReject:
		return "", r.deny("it rejects all images")
	}
	if s.verdict(sess.name, root) == r.fingerprint {
		return r.fingerprint, nil
	}
	found, err := sess.signatures(ctx, root)
	if err != nil {
		return "", fmt.Errorf("signatures of %s: %w", root, err)
	}
	var reasons []string
	for _, sig := range found {
		err := r.verify(sig, sess.name.repository, root)
		if err == nil {
			return r.fingerprint, nil
		}
		if text := err.Error(); !slices.Contains(reasons, text) {
			reasons = append(reasons, text)
		}
	}
	if len(found) == 0 {
		return "", r.deny(fmt.Sprintf("its registry has no signature of %s", root))
	}
	return "", r.deny(fmt.Sprintf("none of %d signatures of %s counts: %s", len(found), root,
		cut(strings.Join(reasons, "; "), maxErrorText)))
}

func (r *rule) deny(why string) error {
	return fmt.Errorf("%w by the rule for %q of type %q: %s", ErrDenied, r.Prefix, r.Type, why)
}

// verdict returns against what an image was checked when it came under that
// name.
func (s *Store) verdict(n name, root digest.Digest) string {
	text := name{repository: n.repository, digest: root}.String()
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, e := range s.images {
		if v := e.record.Verified[text]; v != "" {
			return v
		}
	}
	return ""
}
