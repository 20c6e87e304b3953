// Package imageservice pulls images and keeps them unpacked.
//
// Its nouns: a Store holds Images; an Image is a record that names its layers;
// a layer is a directory that is shared by diffID. A layer is downloaded,
// verified, decompressed and unpacked in one stream, and nothing else of it is
// kept.
//
//	ROOT/lock                 held by the one process that may change the store
//	ROOT/records/ID/          image.json, manifest.json, config.json, parents/
//	ROOT/layers/DIFFID/       layer.json, diff/, listing: each file of diff/ with the sum of its content
//	ROOT/ingest/              work under way; whatever a start finds here is removed
//
// A pull renames its layers into place as they are done, then calls syncfs
// once, then renames image.json. A layer is trusted only while some image.json
// names it: after a power cut there are whole images, and layers of no image,
// which the next start removes.
//
// A registry is asked through a session: its hosts in the order of hosts.toml,
// each with the credentials that are meant for it. What a name stands for goes
// through the image policy before anything else of it is downloaded. An artifact
// is an image without a config, whose blobs become files.
//
// Invariant: everything in an image is hostile. It is verified against the
// digest that named it, no host path is chosen by it, and unpacking opens
// nothing outside the layer's own directory.
package imageservice
