package volumes

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/kubernetes/pkg/api/v1/resource"
	"k8s.io/kubernetes/pkg/fieldpath"
	volumeutil "k8s.io/kubernetes/pkg/volume/util"
)

type payload = map[string]volumeutil.FileProjection

// tokenKey tells tokens of one pod apart.
type tokenKey struct {
	audience string
	seconds  int64
}

type token struct {
	text string
	// renew is when the next is asked for.
	renew time.Time
}

// files are what a volume that is made of other objects has.
func (volumes *Volumes) files(ctx context.Context, pod *corev1.Pod, source corev1.VolumeSource) (payload, error) {
	files := payload{}
	switch {
	case source.ConfigMap != nil:
		one := source.ConfigMap
		return files, volumes.addConfigMap(files, pod, one.Name, one.Items, one.Optional, mode(one.DefaultMode))
	case source.Secret != nil:
		one := source.Secret
		return files, volumes.addSecret(files, pod, one.SecretName, one.Items, one.Optional, mode(one.DefaultMode))
	case source.DownwardAPI != nil:
		one := source.DownwardAPI
		return files, addFields(files, pod, one.Items, mode(one.DefaultMode))
	case source.Projected != nil:
		defaultMode := mode(source.Projected.DefaultMode)
		for _, one := range source.Projected.Sources {
			var err error
			switch {
			case one.ConfigMap != nil:
				err = volumes.addConfigMap(files, pod, one.ConfigMap.Name, one.ConfigMap.Items, one.ConfigMap.Optional, defaultMode)
			case one.Secret != nil:
				err = volumes.addSecret(files, pod, one.Secret.Name, one.Secret.Items, one.Secret.Optional, defaultMode)
			case one.DownwardAPI != nil:
				err = addFields(files, pod, one.DownwardAPI.Items, defaultMode)
			case one.ServiceAccountToken != nil:
				err = volumes.addToken(ctx, files, pod, one.ServiceAccountToken, defaultMode)
			default:
				err = errors.New("this node does not know this projected source")
			}
			if err != nil {
				return nil, err
			}
		}
		return files, nil
	}
	return nil, errors.New("this node does not know this kind of volume")
}

func (volumes *Volumes) addConfigMap(files payload, pod *corev1.Pod, name string, items []corev1.KeyToPath, optional *bool, mode int32) error {
	object, err := volumes.sources.ConfigMap(pod.Namespace, name)
	if missing(err, optional) {
		return nil
	}
	if err != nil {
		return err
	}
	data := map[string][]byte{}
	for key, value := range object.Data {
		data[key] = []byte(value)
	}
	for key, value := range object.BinaryData {
		data[key] = value
	}
	return addItems(files, data, items, optional, mode)
}

func (volumes *Volumes) addSecret(files payload, pod *corev1.Pod, name string, items []corev1.KeyToPath, optional *bool, mode int32) error {
	object, err := volumes.sources.Secret(pod.Namespace, name)
	if missing(err, optional) {
		return nil
	}
	if err != nil {
		return err
	}
	return addItems(files, object.Data, items, optional, mode)
}

func addItems(files payload, data map[string][]byte, items []corev1.KeyToPath, optional *bool, mode int32) error {
	if len(items) == 0 {
		for key, value := range data {
			files[key] = volumeutil.FileProjection{Data: value, Mode: mode}
		}
		return nil
	}
	for _, item := range items {
		value, found := data[item.Key]
		if !found && optional != nil && *optional {
			continue
		}
		if !found {
			return fmt.Errorf("references non-existent key %q", item.Key)
		}
		file := volumeutil.FileProjection{Data: value, Mode: mode}
		if item.Mode != nil {
			file.Mode = *item.Mode
		}
		files[item.Path] = file
	}
	return nil
}

func addFields(files payload, pod *corev1.Pod, items []corev1.DownwardAPIVolumeFile, defaultMode int32) error {
	for _, item := range items {
		var value string
		var err error
		if item.FieldRef != nil {
			value, err = fieldpath.ExtractFieldPathAsString(pod, item.FieldRef.FieldPath)
		} else {
			value, err = resource.ExtractResourceValueByContainerName(item.ResourceFieldRef, pod, item.ResourceFieldRef.ContainerName)
		}
		if err != nil {
			return err
		}
		mode := defaultMode
		if item.Mode != nil {
			mode = *item.Mode
		}
		files[item.Path] = volumeutil.FileProjection{Data: []byte(value), Mode: mode}
	}
	return nil
}

func (volumes *Volumes) addToken(ctx context.Context, files payload, pod *corev1.Pod, source *corev1.ServiceAccountTokenProjection, mode int32) error {
	seconds := int64(3600)
	if source.ExpirationSeconds != nil {
		seconds = *source.ExpirationSeconds
	}
	key := tokenKey{source.Audience, seconds}
	known, found := volumes.tokens[key]
	if !found || time.Now().After(known.renew) {
		text, until, err := volumes.sources.Token(ctx, pod, source.Audience, seconds)
		if err != nil && !found {
			return fmt.Errorf("the token for %q: %w", source.Audience, err)
		}
		if err == nil {
			// As the kubelet: after four fifths of its life, or of a day.
			life := min(time.Until(until), 24*time.Hour)
			known = token{text: strings.TrimSpace(text), renew: time.Now().Add(life * 4 / 5)}
			volumes.tokens[key] = known
		}
	}
	files[source.Path] = volumeutil.FileProjection{Data: []byte(known.text), Mode: mode}
	return nil
}

func missing(err error, optional *bool) bool {
	return apierrors.IsNotFound(err) && optional != nil && *optional
}

func mode(mode *int32) int32 {
	if mode == nil {
		return 0o644
	}
	return *mode
}
