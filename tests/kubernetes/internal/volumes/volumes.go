// Package volumes keeps what a pod mounts: empty folders, and files made of
// config maps, secrets, tokens and the pod's own fields, which follow their
// sources as they change.
package volumes

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"time"

	corev1 "k8s.io/api/core/v1"
	volumeutil "k8s.io/kubernetes/pkg/volume/util"

	"heddle.dev/tests/kubernetes/internal/container"
)

// Sources are what files are made of.
type Sources interface {
	ConfigMap(namespace, name string) (*corev1.ConfigMap, error)
	Secret(namespace, name string) (*corev1.Secret, error)
	// Token asks for a token of the pod's service account, and says until when it is valid.
	Token(ctx context.Context, pod *corev1.Pod, audience string, seconds int64) (string, time.Time, error)
}

// Volumes are those of one pod.
type Volumes struct {
	directory string
	sources   Sources
	tokens    map[tokenKey]token
}

// New keeps a pod's volumes in a directory of their own.
func New(directory string, sources Sources) *Volumes {
	return &Volumes{directory: directory, sources: sources, tokens: map[tokenKey]token{}}
}

// Update makes the volumes that are missing and brings the others up to date.
// It fails if something that is not optional does not exist.
func (volumes *Volumes) Update(ctx context.Context, pod *corev1.Pod) error {
	for _, volume := range pod.Spec.Volumes {
		if err := volumes.update(ctx, pod, volume); err != nil {
			return fmt.Errorf("volume %q: %w", volume.Name, err)
		}
	}
	return nil
}

func (volumes *Volumes) update(ctx context.Context, pod *corev1.Pod, volume corev1.Volume) error {
	path := volumes.path(volume.Name)
	source := volume.VolumeSource
	group := fsGroup(pod)
	switch {
	case source.HostPath != nil:
		return nil
	case source.EmptyDir != nil:
		return emptyDirectory(path, group)
	}
	files, err := volumes.files(ctx, pod, source)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(path, 0o755); err != nil {
		return err
	}
	writer, err := volumeutil.NewAtomicWriter(path, pod.Namespace+"/"+pod.Name)
	if err != nil {
		return err
	}
	return writer.Write(files, func(folder string) error { return give(filepath.Join(path, folder), group) })
}

// Mounts are where a container has the pod's volumes.
func (volumes *Volumes) Mounts(pod *corev1.Pod, spec *corev1.Container, expand func(string) string) ([]container.Mount, error) {
	byName := map[string]corev1.Volume{}
	for _, volume := range pod.Spec.Volumes {
		byName[volume.Name] = volume
	}
	var mounts []container.Mount
	for _, mount := range spec.VolumeMounts {
		volume, found := byName[mount.Name]
		if !found {
			return nil, fmt.Errorf("there is no volume %q", mount.Name)
		}
		source := volumes.path(volume.Name)
		if volume.HostPath != nil {
			source = volume.HostPath.Path
			if err := hostPath(volume.HostPath); err != nil {
				return nil, err
			}
		}
		part := mount.SubPath
		if mount.SubPathExpr != "" {
			part = expand(mount.SubPathExpr)
		}
		if part != "" {
			source = filepath.Join(source, part)
			if _, err := os.Stat(source); os.IsNotExist(err) {
				if err := os.MkdirAll(source, 0o755); err != nil {
					return nil, err
				}
			}
			// A link into a folder that updates replace would lead nowhere later on.
			resolved, err := filepath.EvalSymlinks(source)
			if err != nil {
				return nil, err
			}
			source = resolved
		}
		// What is made of other objects cannot be written, as of Kubernetes 1.9.6.
		readOnly := mount.ReadOnly || (volume.EmptyDir == nil && volume.HostPath == nil)
		mounts = append(mounts, container.Mount{Source: source, Target: mount.MountPath, ReadOnly: readOnly})
	}
	return mounts, nil
}

func (volumes *Volumes) path(name string) string {
	return filepath.Join(volumes.directory, name)
}

func hostPath(source *corev1.HostPathVolumeSource) error {
	if source.Type == nil || *source.Type != corev1.HostPathDirectoryOrCreate {
		return nil
	}
	return os.MkdirAll(source.Path, 0o755)
}

func emptyDirectory(path string, group *int64) error {
	if _, err := os.Stat(path); err == nil {
		return nil
	}
	if err := os.MkdirAll(path, 0o777); err != nil {
		return err
	}
	mode := os.FileMode(0o777)
	if group != nil {
		if err := os.Chown(path, -1, int(*group)); err != nil {
			return err
		}
		mode |= os.ModeSetgid
	}
	return os.Chmod(path, mode)
}

func fsGroup(pod *corev1.Pod) *int64 {
	if pod.Spec.SecurityContext == nil {
		return nil
	}
	return pod.Spec.SecurityContext.FSGroup
}

// give lets the pod's group read files that were just written.
func give(path string, group *int64) error {
	if group == nil {
		return nil
	}
	return filepath.WalkDir(path, func(path string, entry os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if err := os.Lchown(path, -1, int(*group)); err != nil || entry.Type()&os.ModeSymlink != 0 {
			return err
		}
		info, err := entry.Info()
		if err != nil {
			return err
		}
		return os.Chmod(path, info.Mode()|0o040)
	})
}
