package images

import "testing"

func TestAnImageIsFoundInAnyRegistryAndWithoutItsTagUnlessTheTagHasItsOwn(t *testing.T) {
	catalogue := Catalogue{"shop/app": {User: 1}, "shop/app:v2": {User: 2}, "app": {User: 3}}
	for reference, user := range map[string]int64{
		"shop/app": 1, "registry:5000/shop/app": 1, "registry.example/shop/app:v1": 1, "localhost/shop/app:v2": 2,
		"registry:5000/shop/app@sha256:00": 1, "app": 3, "app:v1": 3, "registry:5000/app": 3,
	} {
		if image, err := catalogue.Find(reference); err != nil || image.User != user {
			t.Errorf("%s: %v %v", reference, image.User, err)
		}
	}
	if _, err := catalogue.Find("store/app"); err == nil {
		t.Error("another folder's image is found")
	}
}
