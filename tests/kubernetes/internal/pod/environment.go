package pod

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/kubernetes/pkg/api/v1/resource"
	"k8s.io/kubernetes/pkg/fieldpath"
	"k8s.io/kubernetes/pkg/kubelet/envvars"
	"k8s.io/kubernetes/third_party/forked/golang/expansion"

	"heddle.dev/tests/kubernetes/internal/images"
)

// variables is an environment.
type variables struct {
	values map[string]string
}

func (variables variables) list() []string {
	var list []string
	for _, name := range slices.Sorted(maps.Keys(variables.values)) {
		list = append(list, name+"="+variables.values[name])
	}
	return list
}

// environment is a container's: what the image says, where Services are, and what the pod says.
func (worker *Worker) environment(pod *corev1.Pod, spec *corev1.Container, image images.Image) (variables, error) {
	result := variables{values: map[string]string{
		"PATH":     "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
		"HOSTNAME": worker.hostname(pod),
		"HOME":     "/",
	}}
	maps.Copy(result.values, image.Env)
	services, err := worker.linked(pod)
	if err != nil {
		return result, err
	}
	for _, variable := range envvars.FromServices(services) {
		result.values[variable.Name] = variable.Value
	}
	for _, source := range spec.EnvFrom {
		data, err := worker.variablesFrom(pod, source)
		if err != nil {
			return result, err
		}
		for name, value := range data {
			result.values[source.Prefix+name] = value
		}
	}
	expand := expansion.MappingFuncFor(result.values)
	for _, variable := range spec.Env {
		if variable.ValueFrom == nil {
			result.values[variable.Name] = expansion.Expand(variable.Value, expand)
			continue
		}
		value, found, err := worker.valueFrom(pod, spec, variable.ValueFrom)
		if err != nil {
			return result, fmt.Errorf("variable %s: %w", variable.Name, err)
		}
		if found {
			result.values[variable.Name] = value
		}
	}
	return result, nil
}

// linked are the Services that a pod has variables of: the API server's, and those of its namespace
// unless it does not want them.
func (worker *Worker) linked(pod *corev1.Pod) ([]*corev1.Service, error) {
	api, err := worker.host.Services.Services("default").Get("kubernetes")
	if err != nil {
		return nil, fmt.Errorf("the Service of the API server: %w", err)
	}
	services := []*corev1.Service{api}
	if wanted := pod.Spec.EnableServiceLinks; wanted != nil && !*wanted {
		return services, nil
	}
	own, err := worker.host.Services.Services(pod.Namespace).List(labels.Everything())
	if err != nil {
		return nil, fmt.Errorf("the Services of the namespace: %w", err)
	}
	return append(services, own...), nil
}

func (worker *Worker) variablesFrom(pod *corev1.Pod, source corev1.EnvFromSource) (map[string]string, error) {
	if reference := source.ConfigMapRef; reference != nil {
		object, err := worker.host.Sources.ConfigMap(pod.Namespace, reference.Name)
		if err != nil {
			return nil, unlessOptional(err, reference.Optional)
		}
		return object.Data, nil
	}
	if reference := source.SecretRef; reference != nil {
		object, err := worker.host.Sources.Secret(pod.Namespace, reference.Name)
		if err != nil {
			return nil, unlessOptional(err, reference.Optional)
		}
		return texts(object.Data), nil
	}
	return nil, nil
}

// valueFrom is the value of a variable that is told elsewhere, and whether there is one.
func (worker *Worker) valueFrom(pod *corev1.Pod, spec *corev1.Container, source *corev1.EnvVarSource) (string, bool, error) {
	var data map[string]string
	var err error
	var key string
	var optional *bool
	switch {
	case source.FieldRef != nil:
		value, err := worker.field(pod, source.FieldRef.FieldPath)
		return value, true, err
	case source.ResourceFieldRef != nil:
		named := spec
		for index := range pod.Spec.Containers {
			if pod.Spec.Containers[index].Name == source.ResourceFieldRef.ContainerName {
				named = &pod.Spec.Containers[index]
			}
		}
		value, err := resource.ExtractContainerResourceValue(source.ResourceFieldRef, named)
		return value, true, err
	case source.ConfigMapKeyRef != nil:
		key, optional = source.ConfigMapKeyRef.Key, source.ConfigMapKeyRef.Optional
		var object *corev1.ConfigMap
		if object, err = worker.host.Sources.ConfigMap(pod.Namespace, source.ConfigMapKeyRef.Name); err == nil {
			data = object.Data
		}
	case source.SecretKeyRef != nil:
		key, optional = source.SecretKeyRef.Key, source.SecretKeyRef.Optional
		var object *corev1.Secret
		if object, err = worker.host.Sources.Secret(pod.Namespace, source.SecretKeyRef.Name); err == nil {
			data = texts(object.Data)
		}
	default:
		return "", false, fmt.Errorf("this node does not know this source")
	}
	if err != nil {
		return "", false, unlessOptional(err, optional)
	}
	value, found := data[key]
	if !found && (optional == nil || !*optional) {
		return "", false, fmt.Errorf("there is no key %q", key)
	}
	return value, found, nil
}

// field is a field of the pod. What this node knows before the API server does comes first.
func (worker *Worker) field(pod *corev1.Pod, path string) (string, error) {
	worker.mutex.Lock()
	sandbox := worker.sandbox
	worker.mutex.Unlock()
	switch path {
	case "spec.nodeName":
		return pod.Spec.NodeName, nil
	case "spec.serviceAccountName":
		return pod.Spec.ServiceAccountName, nil
	case "status.hostIP":
		return worker.host.V4, nil
	case "status.hostIPs":
		return worker.host.V4 + "," + worker.host.V6, nil
	case "status.podIP":
		return sandbox.V4, nil
	case "status.podIPs":
		return strings.Join([]string{sandbox.V4, sandbox.V6}, ","), nil
	}
	return fieldpath.ExtractFieldPathAsString(pod, path)
}

func unlessOptional(err error, optional *bool) error {
	if apierrors.IsNotFound(err) && optional != nil && *optional {
		return nil
	}
	return err
}

func texts(data map[string][]byte) map[string]string {
	result := map[string]string{}
	for key, value := range data {
		result[key] = string(value)
	}
	return result
}
